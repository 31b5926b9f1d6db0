"""A sampler that sees the trials of another study before its own."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

from orchestrator.driving.warm_sampler import WarmSampler, with_former
from orchestrator.submission.space import suggest_all
from workers.protocol.spec import StudySpec

WIDE = FloatDistribution(-100, 100)


def spec_of(**space):
    return StudySpec(name="s", space=space)


def former(value=1.0, **params):
    distributions = {
        name: WIDE if isinstance(each, float) else CategoricalDistribution(["a", "b", "c"])
        for name, each in params.items()
    }
    return create_trial(value=value, params=params, distributions=distributions)


X = {"type": "float", "low": 0, "high": 10}


@pytest.mark.parametrize(
    ("space", "params", "is_seen"),
    [
        ({"x": X}, {"x": 3.0}, True),
        ({"x": X}, {"x": 3.0, "other": 1.0}, True),
        ({"x": X}, {"x": 11.0}, False),
        ({"x": X}, {"y": 3.0}, False),
        ({"x": X, "c": {"type": "categorical", "choices": ["a", "z"]}}, {"x": 3.0, "c": "a"}, True),
        (
            {"x": X, "c": {"type": "categorical", "choices": ["a", "z"]}},
            {"x": 3.0, "c": "b"},
            False,
        ),
        ({"x": X, "y": {**X, "when": {"x": 1}}}, {"x": 3.0}, True),
        ({"x": {"type": "int", "low": 0, "high": 9}}, {"x": 3.5}, False),
        ({}, {"whatever": 99.0}, True),
    ],
)
def test_a_former_trial_is_seen_where_it_lies_in_the_space(space, params, is_seen):
    found = with_former(optuna.samplers.TPESampler(), [former(**params)], spec_of(**space))
    assert isinstance(found, WarmSampler) is is_seen


@pytest.mark.parametrize(
    "sampler",
    [
        optuna.samplers.TPESampler(n_startup_trials=5, seed=1),
        optuna.samplers.TPESampler(n_startup_trials=5, seed=1, multivariate=True, group=True),
        optuna.samplers.TPESampler(
            n_startup_trials=5, seed=1, multivariate=True, constant_liar=True
        ),
        optuna.samplers.GPSampler(n_startup_trials=5, seed=1),
    ],
    ids=["tpe", "grouped", "liar", "gp"],
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_the_first_suggestions_are_near_what_was_good_before(sampler):
    spec = spec_of(x=X, y=X)
    known = [former((x - 7.0) ** 2, x=x, y=x) for x in [index / 3 for index in range(30)]]
    warm = with_former(sampler, known, spec)
    study = optuna.create_study(sampler=warm)
    open_ones = [study.ask() for _ in range(2)]
    drawn = []
    for _ in range(8):
        trial = study.ask()
        drawn.append(suggest_all(trial, spec)["x"])
        study.tell(trial, (drawn[-1] - 7.0) ** 2)
    assert [trial.number for trial in study.trials] == list(range(10))
    assert sum(abs(x - 7.0) < 1.5 for x in drawn) >= 5
    assert len(open_ones) == 2
    assert all("x" in trial.params for trial in study.trials[2:])


def test_pruners_look_at_the_study_s_own_trials_alone():
    warm = with_former(optuna.samplers.TPESampler(), [former(x=3.0)] * 9, spec_of(x=X))
    pruner = optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9)
    study = optuna.create_study(sampler=warm, pruner=pruner)
    trial = study.ask()
    suggest_all(trial, spec_of(x=X))
    trial.report(1.0, 0)
    assert not trial.should_prune()
    assert len(study.trials) == 1
