from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.submission.study import build_spec
from workers.protocol.errors import InvalidInputError
from workers.protocol.given import stored_params


@pytest.mark.parametrize("given", [[{"x": 1}], "x", None])
def test_what_is_no_mapping_is_refused_in_words(given):
    spec = build_spec({"objective": "train.py:objective", "name": "s"}, "test", base=Path())
    with pytest.raises(InvalidInputError, match=r"is no mapping: .* enqueue\({'x': 1}, {'x': 2}\)"):
        stored_params(spec, given)
