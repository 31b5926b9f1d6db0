from __future__ import annotations

import math
import sys
import types

import numpy as np
import optuna
import pytest
from optuna import pruners, samplers

from orchestrator.submission.algorithms import (
    PRUNERS,
    SAMPLERS,
    make_pruner,
    make_sampler,
    num_points,
)
from orchestrator.submission.rehearsal import rehearse
from orchestrator.submission.space import suggest_all
from workers.protocol.errors import InvalidInputError
from workers.protocol.spec import StudySpec


def spec(space, **fields):
    return StudySpec(name="s", space=space, **fields)


FLOAT = {"type": "float", "low": 0.0, "high": 1.0}
LAYERS = {"type": "int", "low": 1, "high": 4}
LETTER = {"type": "categorical", "choices": ["a", "b"]}
DISCRETE = {"n": LAYERS, "c": LETTER}

#: What a sampler or pruner cannot do without, by the name of its class.
NEEDED = {
    "PartialFixedSampler": {"fixed_params": {"n": 2}, "base_sampler": "random"},
    "GridSampler": {"search_space": {"x": [0.1, 0.2]}},
    "PercentilePruner": {"percentile": 25.0},
    "PatientPruner": {"wrapped_pruner": "median", "patience": 2},
    "ThresholdPruner": {"upper": 0.5},
}


def public_classes(module, base, ending):
    names = [name for name in module.__all__ if name.endswith(ending)]
    found = [getattr(module, name) for name in names if not name.startswith("Base")]
    assert all(issubclass(each, base) for each in found)
    return found


@pytest.mark.parametrize("kind", public_classes(samplers, samplers.BaseSampler, "Sampler"))
def test_every_sampler_of_optuna_is_there_by_name_and_passes_its_rehearsal(kind):
    (name,) = [name for name, each in SAMPLERS.classes.items() if each is kind]
    space = {"x": FLOAT, "n": LAYERS}
    for spelled in (name, name.replace("_", ""), kind.__name__):
        given = {"type": spelled, "seed": 3, **NEEDED.get(kind.__name__, {})}
        made = spec(space, sampler=given, trials=6)
        if kind is samplers.BruteForceSampler:
            made = spec(DISCRETE, sampler=given, trials=6)
        sampler = make_sampler(made)
        assert type(sampler) is kind
    rehearse(made, sampler, make_pruner(made))


@pytest.mark.parametrize("kind", public_classes(pruners, pruners.BasePruner, "Pruner"))
def test_every_pruner_of_optuna_is_there_by_name_and_passes_its_rehearsal(kind):
    (name, *_) = [name for name, each in PRUNERS.classes.items() if each is kind]
    made = spec({"x": FLOAT}, pruner={"type": name, **NEEDED.get(kind.__name__, {})}, trials=6)
    pruner = make_pruner(made)
    assert type(pruner) is kind
    assert made.pruner.prunes == (kind is not pruners.NopPruner)
    rehearse(made, make_sampler(made), pruner)


def test_what_wraps_others_is_given_them_by_name_with_their_options_and_the_seed():
    fixed = {"type": "partial_fixed", "seed": 5, "fixed_params": {"c": "b"}}
    fixed["base_sampler"] = {"type": "tpe", "multivariate": True, "n_startup_trials": 3}
    sampler = make_sampler(spec({"x": FLOAT, **DISCRETE}, sampler=fixed))
    study = optuna.create_study(sampler=sampler)
    made = spec({"x": FLOAT, **DISCRETE})
    first = [suggest_all(study.ask(), made) for _ in range(4)]
    assert {each["c"] for each in first} == {"b"}
    again = optuna.create_study(sampler=make_sampler(spec({"x": FLOAT, **DISCRETE}, sampler=fixed)))
    assert [suggest_all(again.ask(), made) for _ in range(4)] == first

    pruner = {"type": "patient", "patience": 3}
    pruner["wrapped_pruner"] = {"type": "percentile", "percentile": 10}
    assert isinstance(
        make_pruner(spec({}, pruner=pruner))._wrapped_pruner, pruners.PercentilePruner
    )
    patient = make_pruner(spec({}, pruner={**pruner, "wrapped_pruner": None}))
    assert patient._wrapped_pruner is None


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ("uniform", "UniformCrossover"),
        ("blx_alpha", "BLXAlphaCrossover"),
        ({"type": "sbx", "eta": 2}, "SBXCrossover"),
        ("VSBXCrossover", "VSBXCrossover"),
    ],
)
def test_crossovers_and_mutations_are_given_by_name(given, kind):
    sampler = {"type": "nsgaii", "population_size": 4, "crossover": given}
    sampler["mutation"] = {"type": "polynomial", "eta": 5.0}
    found = make_sampler(spec({"x": FLOAT}, sampler=sampler))
    strategy = found._child_generation_strategy
    assert type(strategy._crossover).__name__ == kind
    assert type(strategy._mutation).__name__ == "PolynomialMutation"


def test_reference_points_are_rows_of_numbers():
    given = {"type": "nsgaiii", "reference_points": [[1, 0], [0, 1]]}
    sampler = make_sampler(spec({"x": FLOAT}, sampler=given, directions=["minimize", "maximize"]))
    points = sampler._elite_population_selection_strategy._reference_points
    assert np.array_equal(points, [[1, 0], [0, 1]])


SPACE = {"x": FLOAT, **DISCRETE}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampler": "tpee"}, "sampler.type = 'tpee': no such sampler; did you mean 'tpe'?"),
        (
            {"sampler": {"type": "tpe", "n_startup": 3}},
            "n_startup = 3: TPESampler has no such option; did you mean 'n_startup_trials'?",
        ),
        (
            {"sampler": {"type": "tpe", "n_startup_trials": "5"}},
            "sampler.n_startup_trials = '5': TPESampler takes int here",
        ),
        (
            {"sampler": {"type": "tpe", "n_startup_trials": True}},
            "sampler.n_startup_trials = True: TPESampler takes int here",
        ),
        (
            {"sampler": {"type": "tpe", "group": "yes", "multivariate": True}},
            "sampler.group = 'yes': TPESampler takes bool here",
        ),
        ({"sampler": {"type": "tpe", "gamma": 3}}, "gamma = 3: TPESampler takes Callable"),
        (
            {"sampler": {"type": "tpe", "weights": "os:getcwd"}},
            "sampler.weights = 'os:getcwd': samplers and pruners are imported only from Optuna",
        ),
        (
            {"sampler": {"type": "tpe", "constraints_func": "f"}},
            "call trial.set_constraint in the objective instead",
        ),
        (
            {"sampler": {"type": "nsgaii", "crossover": "sbxx"}},
            "sampler.crossover.type = 'sbxx': no such crossover; did you mean 'sbx'?",
        ),
        (
            {"sampler": {"type": "nsgaii", "crossover": {"type": "sbx", "etta": 1}}},
            "sampler.crossover.etta = 1: SBXCrossover has no such option; did you mean 'eta'?",
        ),
        (
            {"sampler": {"type": "nsgaii", "crossover": 3}},
            "crossover = 3: NSGAIISampler takes",
        ),
        (
            {"sampler": {"type": "partial_fixed", "fixed_params": {"c": "a"}}},
            "sampler.base_sampler is missing: PartialFixedSampler needs it",
        ),
        (
            {"sampler": {"type": "partial_fixed", "fixed_params": {"d": 1}, "base_sampler": "tpe"}},
            "sampler.fixed_params.d: no such parameter in `space`",
        ),
        (
            {"sampler": {"type": "partial_fixed", "fixed_params": {"n": 9}, "base_sampler": "tpe"}},
            "sampler.fixed_params.n = 9, which n can never be",
        ),
        (
            {"sampler": {"type": "cmaes", "independent_sampler": {"type": "tpe", "gama": 1}}},
            "sampler.independent_sampler.gama = 1: TPESampler has no such option; did you mean",
        ),
        ({"sampler": {"type": "cmaes", "source_trials": [1]}}, "takes list[FrozenTrial] | None"),
        ({"sampler": {"type": "grid", "search_space": {"z": [1]}}}, "search_space.z: no such"),
        ({"sampler": {"type": "grid", "search_space": {"n": [9]}}}, "n = 9, which n can never be"),
        ({"sampler": {"type": "grid", "search_space": {"n": 1}}}, "n = 1: give a list of points"),
        ({"sampler": {"type": "grid", "search_space": [1]}}, "give a list of points for each"),
        (
            {"sampler": "os:path"},
            "type = 'os:path': samplers and pruners are imported only",
        ),
        ({"pruner": "medain"}, "pruner.type = 'medain': no such pruner; did you mean 'median'?"),
        (
            {"pruner": {"type": "percentile"}},
            "pruner.percentile is missing: Percentile",
        ),
        ({"pruner": {"type": "percentile", "percentile": 400}}, "pruner: PercentilePruner refuses"),
        ({"pruner": {"type": "median", "seed": 1}}, "pruner.seed = 1: MedianPruner has no such"),
        (
            {"pruner": {"type": "patient", "patience": 1, "wrapped_pruner": "medain"}},
            "pruner.wrapped_pruner.type = 'medain': no such wrapped_pruner; did you mean 'median'?",
        ),
        (
            {"pruner": {"type": "patient", "patience": 1, "wrapped_pruner": "random"}},
            "pruner.wrapped_pruner.type = 'random': no such wrapped_pruner",
        ),
    ],
)
def test_what_is_no_sampler_or_pruner_or_option_is_refused(fields, message):
    make = make_sampler if "sampler" in fields else make_pruner
    with pytest.raises(InvalidInputError) as error:
        make(spec(SPACE, **fields))
    assert message in str(error.value)


class Walk(samplers.RandomSampler):
    def __init__(self, pace: float = 1.0, seed: int | None = None, **others: object) -> None:
        super().__init__(seed)
        self.pace = pace


class Never(pruners.NopPruner):
    pass


def test_samplers_pruners_and_functions_of_a_module_that_is_allowed_are_imported(monkeypatch):
    module = types.ModuleType("walks")
    module.Walk, module.Never, module.gamma, module.three = Walk, Never, min, 3
    monkeypatch.setitem(sys.modules, "walks", module)
    walk = {"type": "walks:Walk", "pace": 2.5, "colour": "red", "seed": 1}
    sampler = make_sampler(spec(SPACE, sampler=walk), allowed=["walks"])
    assert (type(sampler), sampler.pace) == (Walk, 2.5)
    pruner = make_pruner(spec(SPACE, pruner="walks:Never"), allowed=["*"])
    assert type(pruner) is Never
    named = {"type": "tpe", "gamma": "walks:gamma"}
    tpe = make_sampler(spec(SPACE, sampler=named), allowed=["walks"])
    assert tpe._gamma is min
    for given, message in [
        ("walks:Walks", "does not import: AttributeError"),
        ("walks:three", "it is no BaseSampler of Optuna"),
        ("walks:Never", "it is no BaseSampler of Optuna"),
        ({**walk, "pace": "fast"}, "sampler.pace = 'fast': Walk takes float here"),
        ("walkss:Walk", "imported only from walks; start the orchestrator"),
    ]:
        with pytest.raises(InvalidInputError, match=message):
            make_sampler(spec(SPACE, sampler=given), allowed=["walks"])


def test_the_grid_is_made_of_the_points_of_the_space():
    sampler = make_sampler(spec(DISCRETE, sampler="grid"))
    study = optuna.create_study(sampler=sampler)
    points = {tuple(suggest_all(study.ask(), spec(DISCRETE)).values()) for _ in range(8)}
    assert len(points) == num_points(spec(DISCRETE, sampler="grid")) == 8
    with pytest.raises(InvalidInputError, match="the grid sampler needs points; give `step`"):
        make_sampler(spec({"x": FLOAT}, sampler="grid"))


def test_a_grid_may_name_points_itself_also_of_a_study_without_a_space():
    named = {"type": "grid", "search_space": {"x": [0.1, 0.3]}}
    assert num_points(spec({"x": FLOAT, **DISCRETE}, sampler=named)) == 16
    bare = spec({}, sampler=named)
    study = optuna.create_study(sampler=make_sampler(bare))
    assert {study.ask().suggest_float("x", 0, 1) for _ in range(num_points(bare))} == {0.1, 0.3}
    choices = {"c": {"type": "categorical", "choices": [math.inf, True, 1]}}
    some = spec(choices, sampler={"type": "grid", "search_space": {"c": [math.inf, 1]}})
    study = optuna.create_study(sampler=make_sampler(some))
    assert sorted(str(suggest_all(study.ask(), some)["c"]) for _ in range(2)) == ["1", "inf"]


def test_brute_force_has_as_many_points_as_its_space():
    assert num_points(spec(DISCRETE, sampler="BruteForceSampler")) == 8
    assert num_points(spec({"x": FLOAT}, sampler="brute_force")) == math.inf
    assert num_points(spec(DISCRETE)) == math.inf


def test_a_resumed_study_does_not_draw_the_first_suggestions_again():
    seeded = spec({"x": FLOAT}, sampler={"type": "random", "seed": 1})
    first = optuna.create_study(sampler=make_sampler(seeded)).ask()
    again = optuna.create_study(sampler=make_sampler(seeded)).ask()
    resumed = optuna.create_study(sampler=make_sampler(seeded, num_existing=1)).ask()
    values = [suggest_all(trial, seeded)["x"] for trial in (first, again, resumed)]
    assert values[0] == values[1] != values[2]
