from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from orchestrator.submission.study import build_spec
from workers.protocol.errors import InvalidInputError
from workers.protocol.given import stored_params


def spec_of(**fields):
    return build_spec(
        {"objective": "train.py:objective", "name": "s", **fields}, "test", base=Path()
    )


@pytest.mark.parametrize("given", [[{"x": 1}], "x", None])
def test_what_is_no_mapping_is_refused_in_words(given):
    with pytest.raises(InvalidInputError, match=r"is no mapping: .* enqueue\({'x': 1}, {'x': 2}\)"):
        stored_params(spec_of(), given)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ([1, 2], "'[1, 2]'"),
        ((1, 2), "'[1, 2]'"),
        ({"a": 1}, """'{"a": 1}'"""),
        (math.nan, "'NaN'"),
        (math.inf, "'Infinity'"),
        (10**400, f"'1{'0' * 78}"),
    ],
)
def test_what_no_storage_holds_is_refused_with_its_name_as_the_way_out(value, name):
    with pytest.raises(InvalidInputError, match=r"parameter 'x' = .*: give text, a") as refused:
        stored_params(spec_of(), {"y": 1, "x": value})
    assert name in str(refused.value)


@pytest.mark.parametrize("given", [{"trialfleet:x": 1}, {1: 2}, {"x": object()}])
def test_what_cannot_travel_is_bad_input(given):
    with pytest.raises(InvalidInputError):
        stored_params(spec_of(), given)


def test_of_a_choice_among_lists_the_name_is_taken():
    given = {"x": "[1, 2]", "y": None, "z": True, "n": np.float32(0.5), "m": 10**35}
    assert stored_params(spec_of(), given) == {**given, "n": 0.5}


def test_a_number_that_no_float_holds_is_refused_in_few_words():
    spec = spec_of(space={"x": {"type": "int", "low": 0, "high": 9}})
    for value, problem in ((10**400, "it is no finite number"), (10**5000, "4000 digits")):
        with pytest.raises(InvalidInputError, match=problem) as refused:
            stored_params(spec, {"x": value})
        assert len(str(refused.value)) < 300


def test_numbers_of_numpy_are_numbers_with_a_space_too():
    space = {
        "x": {"type": "float", "low": 0, "high": 9},
        "n": {"type": "int", "low": 0, "high": 9},
        "c": {"type": "categorical", "choices": [16, 32]},
        "deep": {"type": "int", "low": 0, "high": 9, "when": {"c": 32}},
    }
    given = {"x": np.float32(0.5), "n": np.int64(3), "c": np.int32(32), "deep": np.array(4)}
    stored = stored_params(spec_of(space=space), given)
    assert stored == {"x": 0.5, "n": 3, "c": 32, "deep": 4}
    assert [type(each) for each in stored.values()] == [float, int, int, int]
