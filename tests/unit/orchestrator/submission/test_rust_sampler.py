"""`engine: rust`: what it learns from, and that it draws from what a study holds."""

from __future__ import annotations

import builtins
import random

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from rustuna import converter

from orchestrator.driving.warm_sampler import with_former
from orchestrator.submission import rust_sampler
from orchestrator.submission.algorithms import make_sampler
from orchestrator.submission.rehearsal import rehearse
from workers.protocol.errors import InvalidInputError
from workers.protocol.spec import StudySpec

SPACE = {
    "x": {"type": "float", "low": 0.0, "high": 1.0},
    "n": {"type": "int", "low": 1, "high": 64, "log": True},
    "c": {"type": "categorical", "choices": ["a", 1, True, None]},
    "deep": {"type": "int", "low": 1, "high": 3, "when": {"c": ["a"]}},
}
X = {"x": FloatDistribution(0.0, 1.0)}


def spec(**fields):
    sampler = {"type": "tpe", "engine": "rust", "seed": 1, **fields.pop("sampler", {})}
    return StudySpec(**{"name": "s", "space": SPACE, "sampler": sampler, **fields})


def draw(sampler, trials, count=60, directions=("minimize",)):
    """Where new trials are drawn, given those."""
    study = optuna.create_study(directions=list(directions), sampler=sampler)
    study.add_trials(trials)
    return [study.ask(X).params["x"] for _ in range(count)]


def near(places, middle, width=0.06):
    return sum(abs(each - middle) < width for each in places) / len(places)


def complete(x, value, **attrs):
    return create_trial(params={"x": x}, distributions=X, values=value, system_attrs=attrs)


@pytest.fixture
def valley():
    drawn = random.Random(0)
    return [complete(x, [abs(x - 0.5)]) for x in (drawn.random() for _ in range(60))]


def test_it_passes_the_rehearsal_of_a_conditional_space_and_finds_a_minimum():
    rehearse(spec(trials=30), make_sampler(spec()), optuna.pruners.NopPruner())
    study = optuna.create_study(sampler=make_sampler(spec()))
    study.optimize(lambda t: (t.suggest_float("x", -9, 9) - 2) ** 2, n_trials=60)
    assert abs(study.best_params["x"] - 2) < 1


def test_it_draws_for_several_directions():
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=make_sampler(spec()))
    study.optimize(lambda t: (t.suggest_float("x", 0, 1), t.suggest_int("n", 1, 9)), n_trials=40)
    assert len(study.best_trials) >= 1


@pytest.mark.parametrize(
    "there",
    [
        lambda x: complete(x, [0.0], **{"constraints:c": 1.0}),
        lambda x: create_trial(
            state=TrialState.PRUNED, params={"x": x}, distributions=X, intermediate_values={3: 0.0}
        ),
        lambda x: create_trial(
            state=TrialState.PRUNED,
            params={"x": x},
            distributions=X,
            system_attrs={"constraints:oom": 1.0},
        ),
    ],
    ids=["infeasible", "pruned", "out of memory"],
)
def test_it_leaves_a_region_in_which_trials_do_not_complete(valley, there):
    assert near(draw(make_sampler(spec()), valley), 0.5) > 0.5
    drawn = random.Random(1)
    lost = [there(0.44 + 0.12 * drawn.random()) for _ in range(200)]
    assert near(draw(make_sampler(spec()), [*valley, *lost]), 0.5) < 0.1


def test_of_pruned_trials_alone_the_later_ones_are_better():
    drawn = random.Random(2)

    def pruned(x):
        step = 90 if abs(x - 0.2) < 0.05 else 1
        return create_trial(
            state=TrialState.PRUNED,
            params={"x": x},
            distributions=X,
            intermediate_values={step: 5.0},
        )

    trials = [pruned(drawn.random()) for _ in range(80)]
    assert near(draw(make_sampler(spec()), trials), 0.2) > 0.3


def test_former_trials_of_another_study_are_seen(valley):
    former = with_former(
        make_sampler(spec(space={"x": SPACE["x"]})), valley, spec(space={"x": SPACE["x"]})
    )
    assert near(draw(former, [complete(0.9, [1.0])]), 0.5) > 0.5


def test_each_trial_is_converted_once(valley, monkeypatch):
    converted, convert = [], converter.to_persisted_trial
    monkeypatch.setattr(
        converter, "to_persisted_trial", lambda *given: (converted.append(1), convert(*given))[1]
    )
    draw(make_sampler(spec()), valley, count=20)
    assert len(converted) == len(valley)


def test_what_it_has_not_is_refused_by_name(monkeypatch):
    with pytest.raises(InvalidInputError, match=r"engine = 'rust': it has tpe, and no 'cmaes'"):
        make_sampler(spec(sampler={"type": "cmaes"}))
    with pytest.raises(InvalidInputError, match=r"sampler.constant_liar.*no such option"):
        make_sampler(spec(sampler={"constant_liar": True}))
    with pytest.raises(InvalidInputError, match=r"TPESampler refuses .*n_startup_trials"):
        make_sampler(spec(sampler={"n_startup_trials": -5}))
    found = builtins.__import__

    def missing(name, *rest):
        if name == "rustuna":
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InvalidInputError, match=r"pip install 'trialfleet\[rust\]'"):
        rust_sampler.rust_tpe()


def test_the_choices_of_a_space_come_back_as_they_are():
    distribution = {"c": CategoricalDistribution(["a", 1, True, None])}
    study = optuna.create_study(sampler=make_sampler(spec()))
    for _ in range(25):
        trial = study.ask(distribution)
        assert trial.params["c"] in {"a", 1, None}
        study.tell(trial, 0.5)
