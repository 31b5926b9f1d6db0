from __future__ import annotations

import os
import resource
import select
import signal
import warnings

import numpy as np
import optuna
import psutil
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.samplers import (
    CmaEsSampler,
    GPSampler,
    NSGAIISampler,
    PartialFixedSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import TrialState
from structlog.testing import capture_logs
from waiting import wait_until

from orchestrator.driving import sampler_link
from orchestrator.driving.aside_sampler import AsideSampler, may_draw_aside
from orchestrator.driving.sampler_messages import (
    decode_error,
    decode_trial,
    encode_error,
    encode_trial,
    from_line,
    to_line,
)
from orchestrator.driving.seeing_sampler import PausedAsPruned
from orchestrator.driving.warm_sampler import WarmSampler
from workers.protocol.errors import FleetError

warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)

NUM_TRIALS = 24


def draw(study, number):
    """One trial as a study file and an objective may have it: drawn together and one by one."""
    trial = study.ask()
    x = trial.suggest_float("x", -1, 1)
    kind = trial.suggest_categorical("kind", ["a", "b", None, 3]) if number % 3 else "a"
    n = trial.suggest_int("n", 1, 64, log=True)
    trial.set_user_attr("for people", {"only": 1})
    trial.report(x, 1)
    if number % 5 == 4 and "gp" not in study.study_name:
        trial.set_constraint("c", x)
    return trial, x * x + n / 64 + (kind == "b")


def drive(study, count, before=lambda number: None):
    """Have some trials drawn and told, one behind the other; all that they were."""
    open_one = None
    for number in range(count):
        before(number)
        trial, value = draw(study, number)
        if open_one is not None:
            state = TrialState.PRUNED if number % 7 == 6 else TrialState.COMPLETE
            told = None if state is TrialState.PRUNED else open_one[1]
            study.tell(open_one[0], told, state=state)
        open_one = trial, value
    return [(trial.params, trial.state, list(trial.system_attrs)) for trial in study.trials]


@pytest.fixture
def aside():
    """Samplers with a process, which is begun by the third trial and has them from the tenth on."""
    opened = []

    def make(sampler, again=None):
        made = AsideSampler(sampler, again or (lambda: sampler), "s", slow_seconds=-1.0)
        opened.append(made)
        return made

    yield make
    processes = [each._process for each in opened if each._process is not None]
    for each in opened:
        each.close()
    assert not any(psutil.pid_exists(each.pid) for each in processes)


@pytest.fixture
def one_thread(monkeypatch):
    """Have torch calculate in one thread, here and there."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def hand_over_at(sampler, at):
    """Have the process be ready by some trial, and be asked from then on."""

    def before(number):
        if number == at and not sampler.is_aside:
            answers = sampler._process._answers
            wait_until(lambda: select.select([answers], [], [], 0)[0], "it is ready")

    return before


SAMPLERS = {
    "tpe": lambda: TPESampler(seed=1),
    "tpe of all": lambda: TPESampler(seed=1, multivariate=True, group=True, constant_liar=True),
    "gp": lambda: GPSampler(seed=2, n_startup_trials=5),
    "cmaes": lambda: CmaEsSampler(seed=3, n_startup_trials=3),
    "fixed": lambda: PartialFixedSampler({"n": 8}, TPESampler(seed=4)),
}


@pytest.mark.filterwarnings("ignore:Constraints have been set")
@pytest.mark.parametrize("name", SAMPLERS)
def test_what_is_drawn_with_a_seed_is_the_same_wherever_it_is_drawn(name, aside, one_thread):
    count = 14 if name == "gp" else NUM_TRIALS
    alone = optuna.create_study(study_name=name, sampler=SAMPLERS[name]())
    expected = drive(alone, count)
    sampler = aside(SAMPLERS[name]())
    beside = optuna.create_study(study_name=name, sampler=sampler)
    found = drive(beside, count, hand_over_at(sampler, 9))
    assert sampler.is_aside
    assert found == expected


@pytest.mark.parametrize("pruner", [optuna.pruners.HyperbandPruner(1, 9), None])
def test_it_sees_what_the_sampler_would_see(aside, pruner):
    """Former trials, paused ones, and those of a trial's own bracket."""
    former = optuna.create_study(sampler=RandomSampler(seed=8))
    former.optimize(lambda trial: trial.suggest_float("x", -1, 1) ** 2, 6)
    trials = former.get_trials()

    def seen(sampler):
        paused = PausedAsPruned(WarmSampler(sampler, trials), lambda: {3, 4})
        return optuna.create_study(sampler=paused, pruner=pruner, study_name="s")

    expected = drive(seen(TPESampler(seed=1, constant_liar=True)), NUM_TRIALS)
    sampler = aside(TPESampler(seed=1, constant_liar=True))
    assert drive(seen(sampler), NUM_TRIALS, hand_over_at(sampler, 9)) == expected
    assert sampler.is_aside


def test_several_directions_are_known_to_it(aside):
    def drive_both(sampler, before=lambda number: None):
        study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
        for number in range(NUM_TRIALS):
            before(number)
            trial = study.ask({"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)})
            study.tell(trial, [trial.params["x"], trial.params["y"]])
        return [trial.params for trial in study.trials]

    sampler = aside(TPESampler(seed=1))
    assert drive_both(sampler, hand_over_at(sampler, 9)) == drive_both(TPESampler(seed=1))
    assert sampler.is_aside


def test_a_process_that_is_killed_costs_no_trial_and_another_one_takes_its_place(aside):
    made = []

    def again():
        made.append(TPESampler(seed=len(made) + 100))
        return made[-1]

    sampler = aside(TPESampler(seed=1), again)
    pids = []

    def before(number):
        if number in {9, 20}:
            hand_over_at(sampler, number)(number)
        if number in {12, 22}:
            pids.append(sampler._process.pid)
            os.kill(pids[-1], signal.SIGKILL)
            wait_until(lambda: sampler._process._process.poll() is not None, "it is gone")

    study = optuna.create_study(sampler=sampler)
    drive(study, NUM_TRIALS, before)
    assert [trial.number for trial in study.trials] == list(range(NUM_TRIALS))
    assert all({"x", "n"} <= trial.params.keys() for trial in study.trials)
    assert len(made) == len(set(pids)) == 2


def test_what_calculates_with_torch_never_does_so_here(monkeypatch):
    here = []

    def note(sampler, study, trial, space):
        here.append(len(space))
        return {}

    monkeypatch.setattr(GPSampler, "sample_relative", note)
    sampler = PartialFixedSampler({"n": 8}, GPSampler(seed=1, n_startup_trials=1))
    beside = AsideSampler(sampler, lambda: sampler, "s")
    try:
        study = optuna.create_study(sampler=beside)
        space = {"x": FloatDistribution(0, 1), "n": FloatDistribution(0, 9)}
        for _ in range(3):
            trial = study.ask(space)
            study.tell(trial, trial.params["x"])
        assert sum(here) == 0, "the first trial has nothing that is drawn together"
        assert beside.is_aside
    finally:
        beside.close()


def gp_beside():
    """A sampler that calculates with torch, a study that it draws for, and a draw."""
    beside = AsideSampler(
        GPSampler(seed=1, n_startup_trials=1), lambda: GPSampler(seed=2, n_startup_trials=1), "s"
    )
    study = optuna.create_study(sampler=beside)

    def draw_one():
        trial = study.ask({"x": FloatDistribution(0, 1), "n": FloatDistribution(0, 9)})
        study.tell(trial, trial.params["x"])

    return beside, draw_one


def test_a_draw_with_torch_whose_process_is_killed_is_made_by_another_process(monkeypatch):
    beside, draw_one = gp_beside()
    try:
        for _ in range(3):
            draw_one()
        monkeypatch.setattr(
            GPSampler, "sample_relative", lambda *_: pytest.fail("it is drawn here")
        )
        before = beside._process.pid
        os.kill(before, signal.SIGKILL)
        draw_one()
        assert beside._process.pid != before
    finally:
        beside.close()


def test_a_draw_with_torch_is_not_made_here_however_often_its_process_ends(monkeypatch):
    beside, draw_one = gp_beside()
    monkeypatch.setattr(sampler_link, "_PROGRAM", "orchestrator.no_such_program")
    try:
        draw_one()  # nothing is drawn together yet
        monkeypatch.setattr(
            GPSampler, "sample_relative", lambda *_: pytest.fail("it is drawn here")
        )
        for _ in range(2):
            with pytest.raises(FleetError, match="GPSampler draws in a.* ended with code 1.*mem"):
                draw_one()
        assert beside._process is None
    finally:
        beside.close()


def test_a_process_that_is_stopped_is_waited_for_and_replaced(aside):
    made = []

    def again():
        made.append(TPESampler(seed=7))
        return made[-1]

    sampler = aside(TPESampler(seed=1), again)

    def before(number):
        if number == 9:
            hand_over_at(sampler, number)(number)
        if number == 12:
            sampler._process._patience_seconds = 0.2
            os.kill(sampler._process.pid, signal.SIGSTOP)

    study = optuna.create_study(sampler=sampler)
    with capture_logs() as logs:
        drive(study, 14, before)
    assert [trial.number for trial in study.trials] == list(range(14))
    assert [each for each in logs if "did not answer within" in each.get("error", "")]
    assert sampler.inner is made[0]


def test_a_question_that_a_stopped_process_does_not_take_is_given_up(aside):
    sampler = aside(TPESampler(seed=1))
    drive(optuna.create_study(sampler=sampler), 6)
    process = sampler._process
    wait_until(process.is_ready, "it is ready")
    os.kill(process.pid, signal.SIGSTOP)
    process._patience_seconds = 0.2
    with pytest.raises(TimeoutError, match="did not answer within"):
        process._write({"more than a pipe holds": "x" * 2**20})


def test_a_sampler_that_does_not_pickle_draws_here_and_leaves_no_process(aside):
    for at_first in (True, False):
        sampler = aside(TPESampler(seed=1, n_startup_trials=3))
        weights = sampler.inner._parzen_estimator_parameters

        def refuse(number, sampler=sampler, weights=weights, at=0 if at_first else 9):
            if number == at:
                if at:
                    hand_over_at(sampler, number)(number)
                own = weights._replace(weights=lambda count: np.ones(count) / 2)
                sampler.inner._parzen_estimator_parameters = own

        with capture_logs() as logs:
            drive(optuna.create_study(sampler=sampler), NUM_TRIALS, refuse)
        assert sampler._process is None
        (told,) = [each for each in logs if each["event"] == "sampler_process_not_begun"]
        assert "pickle" in told["error"]


def test_more_descriptors_than_select_takes_are_none_too_many(aside):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < 2048:
        pytest.skip("this machine gives a process too few descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, limits[1]))
    held = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while held[-1] < 1030:
            held.append(os.dup(held[0]))
        sampler = aside(TPESampler(seed=1))
        study = optuna.create_study(sampler=sampler)
        drive(study, 8)
        wait_until(sampler._process.is_ready, "it is ready")
        assert sampler._hand_over(sampler._process, study)
        drive(study, 4)
        assert sampler.is_aside
    finally:
        for each in held:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_process_that_ends_again_and_again_is_begun_no_more(aside):
    sampler = aside(TPESampler(seed=1))
    seen = set()

    def before(number):
        if sampler._process is not None:
            seen.add(sampler._process.pid)
            sampler._process._process.kill()
            wait_until(lambda: sampler._process._process.poll() is not None, "it is gone")

    drive(optuna.create_study(sampler=sampler), 3 * NUM_TRIALS, before)
    assert len(seen) == 3
    assert sampler._process is None


def test_an_error_of_the_sampler_is_raised_where_it_was_asked(aside):
    sampler = aside(TPESampler(seed=1))
    study = optuna.create_study(sampler=sampler)
    space = {"x": FloatDistribution(0, 1)}
    for number in range(12):
        study.tell(study.ask(space), float(number))
    sampler.inner._n_ei_candidates = "many"
    hand_over_at(sampler, 0)(0)
    with pytest.raises(ValueError, match="invalid literal for int.* with base 10: .*many"):
        study.ask(space)
    assert sampler.is_aside


def test_an_error_comes_over_as_what_the_driver_tells_apart():
    error = decode_error(from_line(to_line(encode_error(UnicodeError("no")))))
    assert (type(error), str(error)) == (ValueError, "UnicodeError: no")


def test_trials_come_over_as_they_are():
    study = optuna.create_study(sampler=RandomSampler(seed=1))
    drive(study, 12)
    study.tell(11, state=TrialState.FAIL)
    for trial in study.trials:
        found = decode_trial(from_line(to_line(encode_trial(trial))))
        for name in (
            "number", "state", "values", "params", "distributions", "system_attrs",
            "intermediate_values", "constraints", "_trial_id",
        ):  # fmt: skip
            assert getattr(found, name) == getattr(trial, name), name


@pytest.mark.parametrize(
    ("sampler", "may"),
    [
        (TPESampler(), True),
        (GPSampler(), True),
        (CmaEsSampler(), True),
        (PartialFixedSampler({"x": 1.0}, GPSampler()), True),
        (NSGAIISampler(), False),
        (RandomSampler(), False),
        (PartialFixedSampler({"x": 1.0}, NSGAIISampler()), False),
        (CmaEsSampler(independent_sampler=NSGAIISampler()), False),
        (type("Own", (TPESampler,), {})(), False),
    ],
)
def test_samplers_of_which_that_is_known_may_draw_aside(sampler, may):
    assert may_draw_aside(sampler) is may
