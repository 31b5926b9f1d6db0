"""What trials leave in their process, and what it costs to see to it."""

from __future__ import annotations

import gc
import sys
import threading

import psutil
import pytest
from waiting import wait_until

from workers.coordination.studies import Studies, ensure_epoch
from workers.managers import TensorManager, heap
from workers.processes.registry import ProcessRecord
from workers.protocol.messages import RunTrial
from workers.protocol.spec import StudySpec
from workers.trials.runner import TrialRunner

OBJECTIVES = """
import optuna, os, threading, torch

class Ring:
    def __init__(self, held):
        self.held, self.me = held, self

class Descriptor:
    def __init__(self):
        self.number = os.open(os.devnull, os.O_RDONLY)

    def __del__(self):
        os.close(self.number)

def noop(trial):
    return 0.5

def tensors(trial):
    Ring(torch.ones(1_000_000))
    return 0.5

def modules(trial):
    Ring(torch.nn.Linear(1000, 1000))
    return 0.5

def arrays(trial):
    Ring(bytearray(4_000_000))
    return 0.5

def files(trial):
    Ring(Descriptor())
    return 0.5

def objects(trial):
    for _ in range(50_000):
        Ring(None)
    return 0.5

def threads(trial):
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()
    return 0.5

def raises(trial):
    held = torch.ones(1_000_000)
    raise optuna.TrialPruned

KEPT = []

def large(trial):
    freed = []
    for at in range(1500):
        freed.append(torch.ones(25_000))  # 100 kB: too small for maps of their own
        if not at % 100:
            KEPT.append(torch.ones(20_000))
    return 0.5

MIXED = [noop, tensors, modules, arrays, files, objects, threads, raises]

def mixed(trial):
    return MIXED[trial.number % len(MIXED)](trial)
"""


class Slot:
    """A pool process's runner, fed by hand."""

    def __init__(self, runner, client, path):
        self.runner, self.studies, self.path = runner, Studies(client), path

    def run(self, objective, num_trials):
        """Run the trials of a new study, and wait for nothing in between."""
        spec = StudySpec(name=objective, objective=f"{self.path}:{objective}")
        self.studies.submit(spec)
        leases = self.studies.leases(spec.name)
        for number in range(num_trials):
            leases.enqueue(number, {})
            self.runner.run(RunTrial(study=spec.name, number=number, epoch=leases.epoch))
            yield number
        states = {str(leases.record(number).state) for number in range(num_trials)}
        assert states <= {"COMPLETE", "PRUNED"}, states


@pytest.fixture
def slot(tmp_path, client, server, settings, container):
    path = tmp_path / "leaving.py"
    path.write_text(OBJECTIVES)
    ensure_epoch(client)
    runner = TrialRunner(
        client=client,
        redis_url=server.url,
        settings=settings.model_copy(update={"objectives": (str(path),)}),
        container=container,
        record=ProcessRecord(),
        drain_file=str(tmp_path / "drain"),
    )
    with runner:
        yield Slot(runner, client, path)


@pytest.fixture
def collections():
    """How often all garbage was collected."""
    found = []

    def note(phase, info):
        if phase == "start" and info["generation"] == 2:
            found.append(info)

    gc.callbacks.append(note)
    yield found
    gc.callbacks.remove(note)


def held():
    process = psutil.Process()
    return process.memory_info().rss, process.num_fds(), threading.active_count()


def test_trials_of_every_kind_leave_neither_memory_nor_files_nor_threads(slot):
    for number in slot.run("mixed", 300):
        if number == 60:
            before = held()
    memory, files, threads = held()
    assert memory - before[0] < 30_000_000, "one in eight left 4 MB, three of them"
    assert files <= before[1]
    assert threads <= before[2]


def test_trials_that_use_nothing_are_not_tidied_after(slot, collections):
    for number in slot.run("noop", 200):
        if number == 19:
            collections.clear()
    assert len(collections) < 20, "of 180 trials"


@pytest.mark.parametrize("objective", ["tensors", "modules", "files", "objects"])
def test_what_a_trial_used_is_collected_after_it(slot, objective):
    for number in slot.run(objective, 5):
        # Python may have collected some by itself, which is as good
        left = sum(type(each).__name__ == "Ring" for each in gc.get_objects())
        assert left == 0, f"after trial {number}"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is asked")
def test_a_process_that_idles_after_a_large_trial_gives_its_memory_back(
    slot, container, monkeypatch
):
    monkeypatch.setattr(heap, "_BYTES_A_SECOND", 40 << 20)
    list(slot.run("noop", 1))
    tensors = container.get(TensorManager)
    tensors._heap._trim(0)  # what tests before left
    tensors._heap = heap.Heap()  # of a process that never held it
    before, *_ = held()
    list(slot.run("large", 1))
    wait_until(lambda: held()[0] - before < 40_000_000, "no other trial has to end for that")
