from __future__ import annotations

import json
import math

import optuna
import pytest

from orchestrator.submission.space import (
    check_space,
    count_leaves,
    distributions,
    suggest_all,
    suggestion_order,
    values_of,
)
from workers.protocol.errors import InvalidInputError
from workers.protocol.spec import StudySpec


def spec(space, **fields):
    return StudySpec(name="s", space=space, **fields)


FLOAT = {"type": "float", "low": 0.0, "high": 1.0}
LAYERS = {"type": "int", "low": 1, "high": 4}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"x": {**FLOAT, "low": 2.0}}, "space.x: low = 2.0 is above high = 1.0; swap them"),
        ({"x": {**FLOAT, "log": True}}, "space.x: log needs low > 0, and low = 0.0"),
        ({"x": {**LAYERS, "low": 0, "log": True}}, "space.x: log needs low > 0, and low = 0"),
        ({"x": {**FLOAT, "low": 0.1, "log": True, "step": 0.1}}, "log and step = 0.1 exclude"),
        ({"x": {**FLOAT, "high": float("inf")}}, "space.x.high = inf: give a finite number"),
        ({"x": {**LAYERS, "high": 10**400}}, "space.x.high = 1000000"),
        ({"x": {**FLOAT, "low": -1.7e308, "high": 1.7e308}}, "space.x: from -1.7e+308 to 1.7e+308"),
        ({"x": {**FLOAT, "step": 1e-300}}, "space.x.step = 1e-300: these are more steps"),
        ({"x": {"type": "categorical", "choices": [1, 1]}}, "space.x.choices holds 1 twice"),
        ({"x": {**FLOAT, "when": {"y": [1]}}}, "space.x.when.y: no such parameter"),
        (
            {"layers": LAYERS, "x": {**FLOAT, "when": {"layer": [1]}}},
            "space.x.when.layer: no such parameter; did you mean 'layers'?",
        ),
        (
            {"layers": LAYERS, "x": {**FLOAT, "when": {"layers": [9]}}},
            "space.x.when.layers = 9, which layers can never be",
        ),
        (
            {"a": {**FLOAT, "when": {"b": [0.5]}}, "b": {**FLOAT, "when": {"a": [0.5]}}},
            "the `when` conditions go in a circle",
        ),
    ],
)
def test_a_space_that_nothing_can_be_suggested_from_is_refused(space, message):
    with pytest.raises(InvalidInputError) as error:
        check_space(spec(space))
    assert message in str(error.value)


def test_true_and_one_are_different_choices():
    check_space(spec({"x": {"type": "categorical", "choices": [1, True, "1", None]}}))


def test_conditions_come_before_what_they_decide_and_the_rest_stays_as_written():
    space = {"dropout": {**FLOAT, "when": {"layers": [3, 4]}}, "rate": FLOAT, "layers": LAYERS}
    assert suggestion_order(spec(space)) == ["rate", "layers", "dropout"]


def test_a_parameter_is_suggested_only_where_its_condition_holds():
    space = {"dropout": {**FLOAT, "when": {"layers": [3, 4]}}, "layers": LAYERS}
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for _ in range(30):
        values = suggest_all(study.ask(), spec(space))
        assert ("dropout" in values) == (values["layers"] >= 3)
        seen.add(values["layers"])
    assert seen == {1, 2, 3, 4}


def test_dimensions_become_optunas_distributions():
    found = distributions(spec({"x": {**FLOAT, "step": 0.25}, "n": LAYERS}))
    assert found == {
        "x": optuna.distributions.FloatDistribution(0.0, 1.0, step=0.25),
        "n": optuna.distributions.IntDistribution(1, 4),
    }


def test_every_choice_of_a_space_reaches_the_objective_as_it_was_written():
    choices = [0, 1, False, True, 1.5, "1", None, math.inf, -math.inf, "true"]
    made = spec({"c": {"type": "categorical", "choices": choices}})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen = set()
    for _ in range(200):
        trial = study.ask()
        (value,) = suggest_all(trial, made).values()
        assert values_of(made, trial.params) == {"c": value}
        assert values_of(made, json.loads(json.dumps(trial.params))) == {"c": value}
        seen.add(repr(value))
    assert seen == {repr(choice) for choice in choices}


@pytest.mark.parametrize(
    ("space", "count"),
    [
        ({"n": LAYERS}, 4),
        ({"n": LAYERS, "c": {"type": "categorical", "choices": ["a", "b"]}}, 8),
        ({"n": LAYERS, "m": {**LAYERS, "when": {"n": [3, 4]}}}, 2 + 2 * 4),
        (
            {
                "m": {**LAYERS, "when": {"n": [4]}},
                "n": LAYERS,
                "k": {**LAYERS, "when": {"m": [1]}},
            },
            3 + 3 + 4,
        ),
        ({"x": {**FLOAT, "step": 0.25}}, 5),
        ({"x": FLOAT, "n": LAYERS}, math.inf),
        ({}, math.inf),
    ],
)
def test_the_trials_of_a_space_that_differ_are_counted_along_its_conditions(space, count):
    made = spec(space)
    assert count_leaves(made) == count
    if 0 < count < math.inf:
        sampler = optuna.samplers.BruteForceSampler(seed=0)
        study = optuna.create_study(sampler=sampler)
        study.optimize(lambda trial: suggest_all(trial, made) and 0.0)
        assert len(study.trials) == count
