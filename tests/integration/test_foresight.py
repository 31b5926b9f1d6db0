"""Parameters that are drawn before an objective asks: the same ones as plain Optuna draws."""

from __future__ import annotations

import json
from contextlib import ExitStack

import optuna
import pytest
from hand_fleet import Fleet, turn_until
from one_process_fleet import OneProcessFleet
from optuna.distributions import CategoricalDistribution, FloatDistribution, distribution_to_json
from waiting import wait_until

from orchestrator.driving.foresight import draws_each_alone
from orchestrator.submission.algorithms import make_pruner, make_sampler
from workers.coordination import keys
from workers.coordination.inbox import Inbox
from workers.protocol.errors import ObjectiveError
from workers.protocol.messages import Drawn, Result, Taken
from workers.protocol.spec import StudySpec
from workers.protocol.states import TrialState
from workers.trials.objectives import load_objective

OBJECTIVES = '''
import optuna


def plain(trial):
    """Asks each trial for the same."""
    x = trial.suggest_float("x", -10.0, 10.0)
    n = trial.suggest_int("n", 1, 64, log=True)
    kind = trial.suggest_categorical("kind", ["a", "b", None])
    one = trial.suggest_float("one", 2.0, 2.0)
    return x**2 + n + (kind == "a") + one


def numbers(trial):
    """For samplers that draw numbers together, and nothing else."""
    return sum(trial.suggest_float(name, -1.0, 1.0) ** 2 for name in "zyx")


def two(trial):
    x, y = (trial.suggest_float(name, -1.0, 1.0) for name in ("x", "y"))
    return x**2, (y - 1) ** 2


def tree(trial):
    """Has a condition between what is always asked for, and bounds that move."""
    x = trial.suggest_float("x", -1.0, 1.0)
    if x > 0:
        trial.suggest_int("deep", 1, 3)
    top = trial.suggest_float("top", 0.0, 1.0 + trial.number)
    return x + top + trial.suggest_float("y", 0.0, 1.0)


def pruned(trial):
    x = trial.suggest_float("x", 0.0, 1.0)
    trial.report(x, 0)
    if trial.should_prune():
        raise optuna.TrialPruned
    return x + trial.suggest_float("y", 0.0, 1.0)


def failing(trial):
    """Breaks each trial's first attempt between two suggestions."""
    x = trial.suggest_float("x", 0.0, 1.0)
    if trial.attempt == 1:
        trial.suggest_float("only_then", 0.0, 1.0)
        raise OSError(f"broken off with {x!r}")
    return x + trial.suggest_float("y", 0.0, 1.0)
'''

ONE_BY_ONE = {"max_slots": 1}


@pytest.fixture
def fleet(client, server, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (tmp_path / "asking.py").write_text(OBJECTIVES)
    with ExitStack() as stack:
        allowed = settings.model_copy(update={"objectives": ("*",)})
        fleet = stack.enter_context(OneProcessFleet(client, server, allowed, tmp_path))
        fleet.objectives = f"{tmp_path}/asking.py"
        yield fleet


def spec_of(fleet, name, objective, sampler, **fields):
    return StudySpec(
        name=name,
        objective=f"{fleet.objectives}:{objective}",
        sampler=sampler,
        **{"trials": 9, "share": ONE_BY_ONE, **fields},
    )


def by_optuna(spec):
    study = optuna.create_study(
        sampler=make_sampler(spec), pruner=make_pruner(spec), directions=spec.all_directions
    )
    study.optimize(load_objective(spec.objective, ("*",)), n_trials=spec.trials)
    return study


def asked(fleet, study, number):
    """Whether a trial asked the orchestrator for something."""
    return fleet.client.hexists(keys.trial(study, number), "asked")


def suggested(study):
    return [(trial.params, trial.distributions, trial.values) for trial in study.trials]


SAMPLERS = {
    "random": ("plain", {"type": "random", "seed": 3}, {}),
    "tpe": ("plain", {"type": "tpe", "seed": 3, "n_startup_trials": 4}, {}),
    "univariate": (
        "plain", {"type": "tpe", "seed": 3, "n_startup_trials": 4, "multivariate": False}, {},
    ),
    "group": ("plain", {"type": "tpe", "seed": 3, "n_startup_trials": 3, "group": True}, {}),
    "cmaes": ("numbers", {"type": "cmaes", "seed": 3}, {}),
    "mixed_cmaes": ("plain", {"type": "cmaes", "seed": 3, "warn_independent_sampling": False}, {}),
    "qmc": ("plain", {"type": "qmc", "seed": 3, "warn_independent_sampling": False}, {}),
    "nsgaii": (
        "two",
        {"type": "nsgaii", "seed": 3, "population_size": 4},
        {"directions": ["minimize", "minimize"]},
    ),
    "pruned": (
        "pruned", {"type": "tpe", "seed": 3, "n_startup_trials": 3},
        {"pruner": {"type": "threshold", "upper": 0.6}},
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_every_sampler_gives_one_worker_the_parameters_that_plain_optuna_draws(fleet):
    specs = [
        spec_of(fleet, name, objective, sampler, **fields)
        for name, (objective, sampler, fields) in SAMPLERS.items()
    ]
    found = fleet.run_studies(specs)
    for spec in specs:
        assert suggested(found[spec.name]) == suggested(by_optuna(spec)), spec.name
        if spec.name in {"tpe", "group", "cmaes", "qmc"}:
            assert not asked(fleet, spec.name, 8), f"{spec.name}: it is all drawn together"


def test_without_a_seed_only_the_first_trial_asks_for_what_is_new(fleet):
    specs = [
        spec_of(fleet, name, objective, {**sampler, "seed": None}, **fields)
        for name, (objective, sampler, fields) in SAMPLERS.items()
        if objective != "pruned"  # asks for less, then and when
    ]
    for name, study in fleet.run_studies(specs).items():
        assert [asked(fleet, name, number) for number in range(9)] == [True] + [False] * 8, name
        drawn = {tuple(trial.params.values()) for trial in study.trials}
        assert len(drawn) == 9 or name == "nsgaii", "each has its own, but for children of one pair"


def test_without_a_seed_only_what_is_conditional_or_moves_is_asked_for(fleet):
    spec = spec_of(fleet, "s", "tree", {"type": "random"}, trials=8)
    study = fleet.run_studies([spec])["s"]
    for trial in study.trials[1:]:
        last = str(fleet.client.hget(keys.trial("s", trial.number), "asked")).partition(":")[2]
        assert last == "top", "nothing was asked for after it"
        assert ("deep" in trial.params) == (trial.params["x"] > 0)
        assert list(trial.params)[-1] == "y"


def test_a_second_attempt_has_the_parameters_of_the_first(fleet):
    spec = spec_of(fleet, "s", "failing", {"type": "random"}, trials=3)
    study = fleet.run_studies([spec])["s"]
    for trial in study.trials:
        error = fleet.studies.leases("s").record(trial.number).error
        assert error == f"OSError: broken off with {trial.params['x']!r}"
        assert set(trial.params) >= {"x", "y"}


def test_what_was_drawn_and_is_not_asked_for_is_no_parameter_of_the_trial(
    client, settings, tmp_path
):
    fleet = Fleet(client, settings, tmp_path)
    fleet.submit(trials=4, space={}, share=ONE_BY_ONE, sampler={"type": "random"})
    text = distribution_to_json(FloatDistribution(0.0, 1.0))
    with fleet.service() as service:

        def queued(number):
            turn_until(service, lambda: fleet.leases.is_queued(number), "it is in flight")
            return fleet.claim(number)

        def end(number, grant, **params):
            result = Result(values=[0.5], params=params)
            fleet.leases.commit(number, grant.token, TrialState.COMPLETE, result)

        first = queued(0)
        end(0, first, **{name: Drawn(distribution=text, value=0.5) for name in "xy"})
        second = queued(1)
        drawn = second.record.drawn
        assert set(drawn) == {"x", "y"}
        end(1, second, x=drawn["x"])
        third = queued(2)
        assert set(third.record.drawn) == {"x"}, "y is conditional, as it seems"
        assert fleet.leases.take(2, third.token, third.record.drawn)
        turn_until(service, lambda: fleet.stored()[2].params, "it is stored while the trial runs")
        fleet.leases.commit(2, third.token, TrialState.FAILED, Result(error="e"))
        fourth = queued(3)
        other = distribution_to_json(CategoricalDistribution(["a"]))
        end(3, fourth, x=Drawn(distribution=other, value="a"))
        turn_until(service, lambda: service.status("s").is_over, "all are told")
    stored = fleet.stored()
    assert [set(trial.params) for trial in stored] == [{"x", "y"}, {"x"}, {"x"}, set()]
    assert stored[1].params["x"] == drawn["x"].value
    assert stored[2].distributions == {"x": FloatDistribution(0.0, 1.0)}
    assert "parameters of trial 3" in stored[3].user_attrs["trialfleet:error"]


def test_what_redis_lost_is_drawn_no_second_time(client, settings, tmp_path):
    fleet = Fleet(client, settings, tmp_path)
    fleet.submit(trials=2, space={}, share=ONE_BY_ONE, sampler={"type": "random"})
    text = distribution_to_json(FloatDistribution(0.0, 1.0))
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.is_queued(0), "it is in flight")
        params = {"x": Drawn(distribution=text, value=0.5)}
        token = fleet.claim(0).token
        fleet.leases.commit(0, token, TrialState.COMPLETE, Result(values=[0.5], params=params))
        turn_until(service, lambda: fleet.leases.is_queued(1), "the next is in flight")
        drawn = fleet.leases.record(1).drawn
        for key in (keys.trial("s", 1), keys.queued("s")):
            client.delete(key)
        service.look_again = True
        turn_until(service, lambda: fleet.leases.is_queued(1), "it is in flight again")
        assert fleet.leases.record(1).drawn == drawn != {}


def test_a_young_attempt_tells_what_it_uses_while_it_runs_and_a_later_one_at_once(desk, client):
    place = desk(space={})
    text = distribution_to_json(FloatDistribution(0.0, 1.0))
    drawn = {name: Drawn(distribution=text, value=0.5) for name in ("x", "y")}
    place.leases.enqueue(0, {}, drawn=drawn)
    trial = place.hold(0)
    inbox = Inbox(client, "desk")
    inbox.join("s")

    def told():
        entries = [entry for _, entry in inbox.read(["s"], 10)]
        return [entry.decode() for entry in entries]

    assert trial.suggest_float("x", 0, 1) == 0.5
    assert set(trial.untold_params) == {"x"}
    with place.keeper, place.held:
        assert wait_until(told, "the lease's thread tells it") == [Taken(params={"x": drawn["x"]})]
    assert trial.untold_params == {}
    place.leases.release(0, trial._lease.token)
    again = place.hold(0)
    assert again.suggest_float("y", 0, 1) == 0.5
    assert told() == [Taken(params={"y": drawn["y"]})]
    assert again.suggest_float("x", 0, 1) == 0.5
    assert told() == [], "it is the trial's own since the first attempt"


def test_a_joint_value_stands_in_any_distribution_that_holds_it_and_another_in_its_own(desk):
    place = desk(space={})
    text = distribution_to_json(FloatDistribution(0.0, 1.0))
    kinds = {"joint": True, "alone": False}
    place.leases.enqueue(
        0,
        {},
        drawn={
            name: Drawn(distribution=text, value=0.5, is_joint=is_joint)
            for name, is_joint in kinds.items()
        },
    )
    trial = place.hold(0)
    assert trial.relative_params == {"joint": 0.5}

    def answer(name, reply):
        key = keys.reply("s", 0, trial._lease.token)
        place.client.rpush(key, json.dumps({"request": f"suggest:{name}", **reply}))

    assert trial.suggest_float("joint", 0.25, 2.0) == 0.5
    answer("alone", {"value": 0.75})
    assert trial.suggest_float("alone", 0.25, 2.0) == 0.75, "drawn anew"
    assert trial.distributions["joint"] == FloatDistribution(0.25, 2.0)
    answer("other", {"error": "no such"})
    with pytest.raises(ObjectiveError, match="other: no such"):
        trial.suggest_float("other", 0.0, 1.0)


def test_samplers_whose_draws_depend_on_each_other_draw_nothing_alone_before():
    samplers = optuna.samplers
    walk = samplers.BruteForceSampler()

    class Own(samplers.RandomSampler):
        pass

    assert draws_each_alone(samplers.TPESampler())
    assert draws_each_alone(samplers.PartialFixedSampler({"x": 1}, samplers.RandomSampler()))
    assert not draws_each_alone(walk)
    assert not draws_each_alone(samplers.PartialFixedSampler({"x": 1}, walk))
    assert not draws_each_alone(Own()), "nobody knows what it does"
