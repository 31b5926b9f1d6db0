"""Which spaces a study may go on in."""

from __future__ import annotations

import pytest

from workers.protocol.errors import InvalidInputError
from workers.protocol.spec import StudySpec
from workers.protocol.wider_space import (
    is_same_in_wider_space,
    is_same_space,
    is_wider,
    refuse_narrower,
)

SPACE = {
    "lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
    "drop": {"type": "float", "low": 0.1, "high": 0.5, "step": 0.1},
    "layers": {"type": "int", "low": 2, "high": 8, "step": 2},
    "kind": {"type": "categorical", "choices": ["a", 1, None]},
    "deep": {"type": "int", "low": 1, "high": 3, "when": {"layers": [4, 6]}},
}


def space_of(**changes):
    changed = {name: {**SPACE.get(name, {}), **change} for name, change in changes.items()}
    return StudySpec(name="s", space={**SPACE, **changed}).space


BEFORE = space_of()

WIDER = {
    "the same": {},
    "a lower bound": {"lr": {"low": 1e-6}},
    "a higher bound": {"lr": {"high": 1.0}, "deep": {"high": 9}},
    "whole steps lower": {"drop": {"low": 0.0}, "layers": {"low": 0}},
    "half a step higher": {"drop": {"high": 0.55}},
    "a further choice": {"kind": {"choices": ["a", 1, None, "b"]}},
    "choices in another order": {"kind": {"choices": ["b", None, "a", 1]}},
    "a choice that equals another to Optuna": {"kind": {"choices": ["a", 1, None, True]}},
    "a new parameter": {"new": {"type": "float", "low": 0, "high": 1}},
    "a wider condition": {"deep": {"when": {"layers": [4, 6, 8]}}},
    "no condition": {"deep": {"when": {}}},
}

NARROWER = {
    "space.lr.low = 0.001 is above 0.0001": {"lr": {"low": 1e-3}},
    "space.lr.high = 0.001 is below 0.01": {"lr": {"high": 1e-3}},
    "space.lr.low = nan": {"lr": {"low": float("nan")}},
    "space.lr.log is False, and was True": {"lr": {"log": False}},
    "space.drop.step is 0.05, and was 0.1": {"drop": {"step": 0.05}},
    "space.drop.step is None, and was 0.1": {"drop": {"step": None}},
    "space.drop.low = 0.05 lies no whole steps of 0.1 below 0.1": {"drop": {"low": 0.05}},
    "space.layers.low = 1 lies no whole steps": {"layers": {"low": 1}},
    "space.kind.choices lacks 1": {"kind": {"choices": ["a", None, True]}},
    "space.kind.choices lacks 'a'": {"kind": {"choices": [1, None]}},
    "space.deep.type is float, and was int": {"deep": {"type": "float"}},
    "space.deep.when.layers lacks 6": {"deep": {"when": {"layers": [4, 8]}}},
    "space.deep.when.kind is new": {"deep": {"when": {"layers": [4, 6], "kind": ["a"]}}},
}


@pytest.mark.parametrize("changes", WIDER.values(), ids=WIDER)
def test_a_space_is_wider_that_holds_all_that_was_in_the_other(changes):
    assert is_wider(BEFORE, space_of(**changes))


@pytest.mark.parametrize(("reason", "changes"), NARROWER.items(), ids=NARROWER)
def test_what_is_less_of_a_space_is_refused_by_its_name_with_the_way_out(reason, changes):
    with pytest.raises(InvalidInputError, match="can only become wider.*`from`") as found:
        refuse_narrower(BEFORE, space_of(**changes))
    assert str(found.value).startswith(reason)


def test_a_parameter_cannot_be_left_out():
    left = {name: each for name, each in BEFORE.items() if name != "kind"}
    with pytest.raises(InvalidInputError, match=r"^space\.kind is left out: its trials have it"):
        refuse_narrower(BEFORE, left)


def test_a_default_makes_no_other_space_and_no_other_study():
    with_default = space_of(lr={"default": 1e-3})
    assert is_same_space(BEFORE, with_default)
    identities = [StudySpec(name="s", space=space).identity() for space in (BEFORE, with_default)]
    assert identities[0] == identities[1]


def test_only_a_study_that_is_the_same_else_is_one_in_a_wider_space():
    before = StudySpec(name="s", space=BEFORE, config={"x": float("nan")})

    def is_it(was=before, **changes):
        space = space_of(lr={"high": 1.0})
        return is_same_in_wider_space(was, before.model_copy(update={"space": space, **changes}))

    assert is_it()
    assert is_it(trials=7)
    assert not is_it(space=BEFORE)
    assert not is_it(space=space_of(lr={"high": 1e-3}))
    assert not is_it(space={})
    assert not is_it(was=before.model_copy(update={"space": {}}))
    assert not is_it(name="t")
    assert not is_it(config={})
    assert not is_it(directions=["maximize"])
