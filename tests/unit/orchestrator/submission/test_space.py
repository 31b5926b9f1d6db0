from __future__ import annotations

import json
import math

import optuna
import pytest

from orchestrator.submission.space import (
    check_space,
    distributions,
    make_pruner,
    make_sampler,
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


@pytest.mark.parametrize("name", ["tpe", "random", "nsgaii", "nsgaiii", "qmc", "bruteforce"])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_samplers_are_known_by_short_names(name):
    sampler = make_sampler(spec({"x": FLOAT}, sampler={"type": name, "seed": 3}))
    assert isinstance(sampler, optuna.samplers.BaseSampler)


@pytest.mark.parametrize(
    ("pruner", "kind"),
    [
        ({"type": "none"}, optuna.pruners.NopPruner),
        ({"type": "median", "n_startup_trials": 2}, optuna.pruners.MedianPruner),
        ({"type": "hyperband"}, optuna.pruners.HyperbandPruner),
        ({"type": "percentile", "percentile": 25.0}, optuna.pruners.PercentilePruner),
    ],
)
def test_pruners_are_known_by_short_names(pruner, kind):
    assert isinstance(make_pruner(spec({}, pruner=pruner)), kind)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampler": "tpee"}, "sampler.type = 'tpee': no such sampler; did you mean 'tpe'?"),
        ({"sampler": {"type": "tpe", "n_startup": 3}}, "sampler.n_startup = 3: TPESampler has no"),
        ({"pruner": "medain"}, "pruner.type = 'medain': no such pruner; did you mean 'median'?"),
        ({"pruner": {"type": "percentile"}}, "pruner: PercentilePruner refuses"),
    ],
)
def test_what_is_no_sampler_or_pruner_is_refused(fields, message):
    make = make_sampler if "sampler" in fields else make_pruner
    with pytest.raises(InvalidInputError) as error:
        make(spec({}, **fields))
    assert message in str(error.value)


def test_the_grid_is_made_of_the_points_of_the_space():
    space = {"n": LAYERS, "c": {"type": "categorical", "choices": ["a", "b"]}}
    sampler = make_sampler(spec(space, sampler="grid"))
    study = optuna.create_study(sampler=sampler)
    points = {tuple(suggest_all(study.ask(), spec(space)).values()) for _ in range(8)}
    assert len(points) == 8
    with pytest.raises(InvalidInputError, match="the grid sampler needs points; give `step`"):
        make_sampler(spec({"x": FLOAT}, sampler="grid"))


def test_a_resumed_study_does_not_draw_the_first_suggestions_again():
    seeded = spec({"x": FLOAT}, sampler={"type": "random", "seed": 1})
    first = optuna.create_study(sampler=make_sampler(seeded)).ask()
    again = optuna.create_study(sampler=make_sampler(seeded)).ask()
    resumed = optuna.create_study(sampler=make_sampler(seeded, num_existing=1)).ask()
    values = [suggest_all(trial, seeded)["x"] for trial in (first, again, resumed)]
    assert values[0] == values[1] != values[2]


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
