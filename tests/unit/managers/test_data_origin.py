from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import workers
from workers.managers import data_origin
from workers.managers.sources import read_source
from workers.managers.tags import WordTags
from workers.managers.targets import targets_of
from workers.managers.text_format import end_of
from workers.managers.token_rows import padded
from workers.managers.tokenized import TokenizedTexts
from workers.texts.split import split_rows


@pytest.mark.parametrize(
    "part",
    [read_source, split_rows, WordTags, targets_of, end_of, padded, TokenizedTexts],
    ids=lambda part: part.__name__,
)
def test_tokens_follow_from_the_code_that_makes_them(part):
    path = Path(inspect.getfile(part)).relative_to(Path(workers.__file__).parent)
    assert any(path.match(pattern) for pattern in data_origin._CODE)
