"""A loader process that is killed costs its trial an attempt, and nothing else."""

from __future__ import annotations

import pytest
from one_process_fleet import OneProcessFleet

from orchestrator.handle import StudyHandle
from orchestrator.storage.event_file import EventFile, events_file
from orchestrator.storage.event_history import EventHistory
from workers.protocol.events import Cause, EventKind
from workers.protocol.spec import StudySpec

OBJECTIVES = """
import os, signal, sys, time
from pathlib import Path
import optuna, torch
from torch.utils.data import DataLoader, Dataset
from workers.managers import DataManager, loader_process

ATTEMPTS, DEATHS = Path(__file__).with_name("attempts"), {deaths}

class Rows(Dataset):
    def __init__(self, act):
        self.act = act
    def __len__(self):
        return 8
    def __getitem__(self, index):
        if index == 5 and self.act is not None:
            self.act()
        return torch.ones(1000)

def killed():
    os.kill(os.getpid(), signal.SIGKILL)

def killed_by_its_code():
    os.kill(os.getpid(), signal.SIGSEGV)

def with_its_server():
    assert loader_process.forked_by == os.getppid()
    os.kill(os.getppid(), signal.SIGKILL)
    signal.pause()

def exits():
    os._exit(3)

def raises():
    raise EOFError("of the objective's own")

def is_stuck():
    time.sleep(600)

def train(data, act, context=None):
    with ATTEMPTS.open("a") as told:
        told.write("a")
    is_to_die = ATTEMPTS.stat().st_size <= DEATHS
    rows = Rows(act if is_to_die else None)
    loader = DataLoader(rows, batch_size=2, num_workers=2, multiprocessing_context=context)
    loader = loader if data is None else data.registered(loader)
    return float(sum(batch.sum() for batch in loader))

def of_a_killed(trial, data: DataManager):
    return train(data, killed, "spawn")

def of_one_that_crashed(trial, data: DataManager):
    return train(data, killed_by_its_code, "spawn")

def of_one_that_died_with_its_server(trial, data: DataManager):
    return train(data, with_its_server, "spawn")

def of_one_of_its_own(trial):
    try:
        return train(None, killed, "fork")
    except RuntimeError:
        raise ValueError("it fails without loaders, too")

def of_one_that_exits(trial, data: DataManager):
    return train(data, exits, "spawn")

def of_one_that_raises(trial, data: DataManager):
    return train(data, raises, "spawn")

def of_one_that_torch_ends(trial, data: DataManager):
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.2
    loader = DataLoader(Rows(is_stuck), num_workers=1, timeout=60, multiprocessing_context="spawn")
    batches = iter(data.registered(loader))
    for _ in range(5):
        next(batches)
    batches._timeout = 1  # it was given time to start
    try:
        return float(next(batches).sum())
    finally:
        batches._shutdown_workers()  # as Lightning does
        assert batches._workers[0].exitcode == -signal.SIGTERM

def of_one_that_is_taken_for_a_verdict(trial, data: DataManager):
    try:
        return train(data, killed, "spawn")
    except Exception as error:
        raise optuna.TrialPruned from error
"""


@pytest.fixture
def fleet(client, server, settings, tmp_path):
    (tmp_path / "loading.py").write_text(OBJECTIVES.replace("{deaths}", "1"))
    config = settings.model_copy(update={"objectives": (str(tmp_path / "loading.py"),)})
    with OneProcessFleet(client, server, config, tmp_path) as opened:
        yield opened


def run(fleet, tmp_path, objective, **fields):
    """One trial of it, and what its study's events tell of its attempts."""
    spec = StudySpec(name="s", objective=f"{tmp_path}/loading.py:{objective}", trials=1, **fields)
    [trial] = fleet.run_studies([spec])["s"].trials
    history = EventHistory(EventFile(events_file(fleet.config.home, "s")), None, "s")
    told = [each for each in history.read() if each.kind == EventKind.REQUEUED]
    return trial, told


def test_who_loses_one_each_time_loses_no_trial(fleet, tmp_path):
    (tmp_path / "loading.py").write_text(OBJECTIVES.replace("{deaths}", "2"))
    trial, told = run(fleet, tmp_path, "of_a_killed", max_failures=1)
    assert (trial.state.name, trial.value) == ("COMPLETE", 8000.0)
    assert [each.cause for each in told] == [Cause.LOADER_DIED] * 2
    assert StudyHandle("s", fleet.config).status().requeued == {"loader_died": 2}


@pytest.mark.parametrize(
    ("objective", "signal"),
    [
        ("of_one_that_crashed", "SIGSEGV"),
        ("of_one_that_died_with_its_server", "SIGKILL"),
        ("of_one_of_its_own", "SIGKILL; then the objective raised ValueError: it fails without"),
    ],
)
def test_by_whatever_signal_it_died(fleet, tmp_path, objective, signal):
    trial, [told] = run(fleet, tmp_path, objective, max_failures=1)
    assert (trial.state.name, trial.value) == ("COMPLETE", 8000.0)
    assert told.cause == Cause.LOADER_DIED
    assert f"was ended by {signal}" in told.detail


@pytest.mark.parametrize(
    "objective", ["of_one_that_exits", "of_one_that_raises", "of_one_that_torch_ends"]
)
def test_what_it_does_by_itself_is_the_objectives_own_fault(fleet, tmp_path, objective):
    trial, told = run(fleet, tmp_path, objective, max_failures=1)
    assert (trial.state.name, told) == ("FAIL", [])


def test_an_objective_may_make_a_verdict_of_it(fleet, tmp_path):
    trial, told = run(fleet, tmp_path, "of_one_that_is_taken_for_a_verdict")
    assert (trial.state.name, told) == ("PRUNED", [])
