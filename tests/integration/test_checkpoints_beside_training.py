"""Checkpoints that are written while training goes on: what they hold, who waits, what fails."""

from __future__ import annotations

import resource
import threading
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import redis
import structlog
import torch

from workers.coordination.leases import TrialLeases
from workers.disk import snapshots
from workers.disk.checkpoint_content import load_state
from workers.disk.checkpoints import CheckpointStore
from workers.disk.outbox import Outbox
from workers.processes.registry import ProcessRecord
from workers.protocol.errors import DrainRequested, LeaseLost, UnsuitableValueError
from workers.protocol.messages import RunTrial
from workers.protocol.states import TrialState
from workers.trials.handle import FleetTrial
from workers.trials.outcomes import Outcome
from workers.trials.runner import TrialRunner


class Gate:
    """Holds whoever writes a checkpoint, until it is opened; counts those who write."""

    def __init__(self, monkeypatch):
        self._save = CheckpointStore.save
        self.writes = []
        self.close()
        gate = self

        def save(store, *place_and_state, **more):
            is_open = gate._open  # as it was when this write began
            gate.writes.append((threading.current_thread().name, place_and_state[3]))
            assert is_open.wait(60.0)
            return gate._save(store, *place_and_state, **more)

        monkeypatch.setattr(CheckpointStore, "save", save)

    def close(self):
        self._open = threading.Event()

    def open(self):
        self._open.set()


@pytest.fixture
def gate(monkeypatch):
    made = Gate(monkeypatch)
    yield made
    made.open()


def whole_state():
    weights = torch.arange(12.0).reshape(3, 4)
    return {
        "weights": weights,
        "a view": weights[1:].t(),
        "parameter": torch.nn.Parameter(torch.ones(5, dtype=torch.bfloat16)),
        "sparse": torch.eye(3).to_sparse(),
        "conjugate": torch.tensor([1 + 2j]).conj(),
        "nothing": torch.empty(0),
        "array": np.arange(6.0),
        "list": [1, "two", {"three": torch.tensor(3)}],
        "generator": torch.Generator().manual_seed(3),
    }


def overwrite(state):
    with torch.no_grad():
        for value in (state["weights"], state["parameter"], state["list"][2]["three"]):
            value.zero_()
        state["array"][:] = -1.0
        state["sparse"]._values().zero_()
        state["conjugate"].zero_()
        state["generator"].manual_seed(9)
        state["list"].append("more")
        state["list"][2]["four"] = 4


def described(value):
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, torch.Tensor):
        return (type(value), value.dtype, value.to_dense().tolist())
    if isinstance(value, np.ndarray):
        return (value.dtype, value.tolist())
    if isinstance(value, list):
        return [described(item) for item in value]
    if isinstance(value, dict):
        return {key: described(item) for key, item in value.items()}
    return value


def test_a_checkpoint_holds_the_state_as_it_was_at_the_call_whatever_becomes_of_it(desk, gate):
    trial = desk().claim()
    expected = described(whole_state())
    for step in (1, 2):  # the second in the buffers of the first
        gate.close()
        state = whole_state()
        trial.save_checkpoint(step, state)
        overwrite(state)
        gate.open()
        found = trial.load_checkpoint()
        assert described(found) == expected
        view = found["a view"].untyped_storage()
        assert view.data_ptr() == found["weights"].untyped_storage().data_ptr(), "still a view"


@pytest.fixture
def full_disk():
    """No file grows beyond 4 MB while a test holds this open."""

    @contextmanager
    def limited():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.mark.parametrize("is_drained", [False, True], ids=["beside", "on the way out"])
def test_a_disk_that_is_full_is_logged_and_training_goes_on(desk, full_disk, is_drained):
    place = desk()
    trial = place.claim()
    trial.save_checkpoint(1, {"step": 1})
    trial.await_checkpoint()
    if is_drained:
        place.drain.set()
        with pytest.raises(DrainRequested):
            trial.progress(2)
    large = {"weights": torch.ones(2 << 20), "more": torch.ones(2 << 20)}
    with full_disk(), structlog.testing.capture_logs() as logs:
        trial.save_checkpoint(2, large)
        trial.await_checkpoint()
    assert [log["event"] for log in logs] == ["checkpoint_not_saved"]
    assert "File too large" in logs[0]["error"]
    assert trial.load_checkpoint() == {"step": 1}
    trial.save_checkpoint(3, large)
    trial.await_checkpoint()
    assert place.leases.record(0).checkpoint.step == 3


@pytest.mark.parametrize(
    "mode", [lambda: torch.device("meta"), torch.inference_mode, torch.no_grad],
    ids=["a default device", "inference", "no gradients"],
)  # fmt: skip
def test_whatever_mode_torch_is_in_a_checkpoint_is_as_in_none(desk, gate, mode):
    trial = desk().claim()
    gate.open()
    expected = described(whole_state())
    for is_first in (True, False):  # the second in the buffers of the first, out of that mode
        with mode() if is_first else nullcontext():
            with torch.device("cpu"):
                state = whole_state()
            trial.save_checkpoint(1 if is_first else 2, state | {"nothing in": b""})
            found = trial.load_checkpoint()
        assert found.pop("nothing in") == b""
        assert described(found) == expected


def test_what_was_made_in_inference_mode_is_saved_out_of_it(desk, gate):
    trial = desk().claim()
    gate.open()
    with torch.inference_mode():
        state = {
            "leaf": torch.ones(3, requires_grad=True),
            "of a model": torch.nn.Linear(2, 1).weight,
        }
    trial.save_checkpoint(1, state)
    assert described(trial.load_checkpoint()) == described(state)


@pytest.mark.parametrize(
    ("folder", "names", "prefix"),
    [
        ("", ("memory.max", "memory.current"), ""),
        ("memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_"),
    ],
)
def test_files_that_the_kernel_would_drop_count_as_free(tmp_path, folder, names, prefix):
    group = tmp_path / folder
    group.mkdir(exist_ok=True)
    for name, text in zip(names, ("9000\n", "8000\n"), strict=True):
        (group / name).write_text(text)
    (group / "memory.stat").write_text(f"anon 1\n{prefix}inactive_file 5000\n")
    assert snapshots.free_memory(tmp_path) == 6000


def test_pinned_memory_counts_as_the_power_of_two_that_torch_takes():
    sizes = [0, 1, 3, 4096, 4097]
    assert [snapshots._taken(size, is_pinned=True) for size in sizes] == [0, 1, 4, 4096, 8192]
    assert [snapshots._taken(size, is_pinned=False) for size in sizes] == sizes


def test_a_tensor_whose_memory_was_freed_is_refused_by_its_place(desk):
    trial = desk().claim()
    weight = torch.ones(10, 10)
    state = {"model": {"weight": weight.t(), "none": torch.ones(0, 3)}}
    weight.untyped_storage().resize_(396)
    with pytest.raises(UnsuitableValueError, match=r"\['model'\]\['weight'\].*\[10, 10\].*freed"):
        trial.save_checkpoint(1, state)


def test_training_goes_on_while_one_checkpoint_is_written_and_the_next_one_waits(desk, gate):
    place = desk()
    trial = place.claim()
    trial.save_checkpoint(1, {"step": torch.tensor(1)})
    trial.progress(2)
    trial.report(0.5, 2)
    assert place.leases.record(0).checkpoint is None, "not written yet"
    second = threading.Thread(target=trial.save_checkpoint, args=(2, {"step": torch.tensor(2)}))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    assert gate.writes == [("checkpoint", 1)]
    gate.open()
    second.join(60.0)
    trial.await_checkpoint()
    assert place.leases.record(0).checkpoint.step == 2
    assert trial.load_checkpoint() == {"step": torch.tensor(2)}


def test_where_memory_is_short_or_no_thread_is_left_training_waits(desk, gate, monkeypatch):
    place = desk()
    trial = place.claim()
    gate.open()
    trial.save_checkpoint(1, {"weights": torch.ones(1000)})
    trial.await_checkpoint()
    monkeypatch.setattr(snapshots, "free_memory", lambda: 5000)
    trial.save_checkpoint(2, {"weights": torch.ones(1000)})  # in the buffer that there is
    trial.save_checkpoint(3, {"weights": torch.ones(1001)})
    assert place.leases.record(0).checkpoint.step == 3
    monkeypatch.setattr(snapshots, "free_memory", lambda: 2**40)

    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    trial.save_checkpoint(4, {"weights": torch.ones(1001)})
    assert place.leases.record(0).checkpoint.step == 4
    main = threading.current_thread().name
    assert gate.writes == [("checkpoint", 1), ("checkpoint", 2), (main, 3), (main, 4)]


@pytest.mark.parametrize(
    "call",
    [
        lambda trial: trial.progress(2),
        lambda trial: trial.report(0.5, 2),
        lambda trial: trial.save_checkpoint(2, {}),
        lambda trial: trial.load_checkpoint(),
        lambda trial: trial.await_checkpoint(),
    ],
    ids=["progress", "report", "save_checkpoint", "load_checkpoint", "the end"],
)
@pytest.mark.parametrize("error", [RuntimeError("cannot write"), LeaseLost("gone")])
def test_what_goes_wrong_with_a_checkpoint_is_raised_by_the_next_call(
    desk, monkeypatch, call, error
):
    def fail(*_, **__):
        raise error

    trial = desk().claim()
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "save", fail)
        trial.save_checkpoint(1, {"step": 1})
        trial.settle_checkpoint(60.0)
    with pytest.raises(type(error), match=str(error)):
        call(trial)


def test_a_lease_that_another_attempt_has_is_lost_to_the_one_that_still_writes(desk, gate):
    place = desk()
    trial = place.claim()
    trial.save_checkpoint(1, {"step": 1})
    assert place.leases.release(0, place.held.token)
    gate.open()
    trial.settle_checkpoint(60.0)
    with pytest.raises(LeaseLost):
        trial.progress(2)
    assert place.leases.record(0).checkpoint is None


OBJECTIVE = """
from pathlib import Path
import torch
import optuna

def ends(trial):
    state = {"weights": torch.ones(3)}
    trial.save_checkpoint(1, state)
    state["weights"].zero_()
    how = trial.config["how"]
    if how == "drained":
        Path(trial.config["drain"]).touch()
        trial.progress(2)
    if how == "fails":
        raise ValueError("boom")
    if how == "is pruned":
        raise optuna.TrialPruned
    return 1.0
"""


@pytest.fixture
def run_trial(client, settings, container, server, tmp_path):
    """Runs the trial 0 of a desk as a pool process does."""
    allowed = settings.model_copy(update={"objectives": (str(tmp_path / "ending.py"),)})

    def run(place, drain, slots=None):
        with TrialRunner(
            client=client,
            redis_url=server.url,
            settings=allowed.model_copy(update={"slots": slots}),
            container=container,
            record=ProcessRecord(),
            drain_file=str(drain),
        ) as runner:
            return runner.run(RunTrial(study="s", number=0, epoch=place.leases.epoch))

    return run


@pytest.mark.parametrize(("num_slots", "is_copied"), [(1, True), (4, False)])
def test_the_slots_of_a_host_share_the_memory_for_copies(
    desk, run_trial, tmp_path, monkeypatch, num_slots, is_copied
):
    (tmp_path / "ending.py").write_text(OBJECTIVE)
    monkeypatch.setattr(snapshots, "free_memory", lambda: 80)  # for a state of 12 bytes
    taken, snapshot = [], snapshots.HostMemory.snapshot

    def note(memory, packed):
        taken.append(snapshot(memory, packed))
        return taken[-1]

    monkeypatch.setattr(snapshots.HostMemory, "snapshot", note)
    place = desk(objective=f"{tmp_path}/ending.py:ends", config={"how": "returns"})
    place.leases.enqueue(0, {})
    assert run_trial(place, tmp_path / "drain", slots=num_slots) is Outcome.ENDED
    assert [each is not None for each in taken] == [is_copied]


@pytest.mark.parametrize(
    ("how", "outcome", "step"),
    [("drained", Outcome.GOES_BACK, 1), ("fails", Outcome.ENDED, 1), ("lost", Outcome.ENDED, None)],
)
def test_an_attempt_ends_when_its_last_checkpoint_is_written(
    desk, run_trial, container, tmp_path, monkeypatch, how, outcome, step
):
    (tmp_path / "ending.py").write_text(OBJECTIVE)
    drain = tmp_path / "drain"
    place = desk(objective=f"{tmp_path}/ending.py:ends", config={"how": how, "drain": str(drain)})
    place.leases.enqueue(0, {})
    saved, wait, is_over = CheckpointStore.save, FleetTrial.await_checkpoint, threading.Event()

    def wait_and_say_so(trial):
        is_over.set()
        wait(trial)

    def save_late(store, *state, **more):
        assert is_over.wait(60.0)  # the objective has ended by then
        if how == "lost":
            token = place.leases.record(0).token
            assert place.leases.release(0, token)
        return saved(store, *state, **more)

    monkeypatch.setattr(CheckpointStore, "save", save_late)
    monkeypatch.setattr(FleetTrial, "await_checkpoint", wait_and_say_so)
    assert run_trial(place, drain) is outcome
    record = place.leases.record(0)
    assert (None if record.checkpoint is None else record.checkpoint.step) == step
    if step is not None:
        assert load_state(record.checkpoint)["weights"].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("how", "state"),
    [
        ("returns", TrialState.COMPLETE),
        ("is pruned", TrialState.PRUNED),
        ("fails", TrialState.QUEUED),
    ],
)
def test_a_result_is_not_lost_to_a_checkpoint_that_nobody_needs(
    desk, run_trial, tmp_path, monkeypatch, how, state
):
    (tmp_path / "ending.py").write_text(OBJECTIVE)
    place = desk(objective=f"{tmp_path}/ending.py:ends", config={"how": how})
    place.leases.enqueue(0, {})

    def fail(*_):
        raise RuntimeError("the writer broke")

    monkeypatch.setattr(CheckpointStore, "save", fail)
    assert run_trial(place, tmp_path / "drain") is Outcome.ENDED
    assert place.leases.record(0).state is state


def test_a_result_is_brought_to_disk_once_where_redis_does_not_answer(
    desk, run_trial, tmp_path, monkeypatch
):
    (tmp_path / "ending.py").write_text(OBJECTIVE)
    place = desk(objective=f"{tmp_path}/ending.py:ends", config={"how": "returns"})
    place.leases.enqueue(0, {})
    commit, brought, refused = TrialLeases.commit, [], []

    def commit_at_last(*arguments):
        if len(refused) < 3:
            refused.append(len(brought))
            raise redis.ConnectionError("away")
        return commit(*arguments)

    monkeypatch.setattr(TrialLeases, "commit", commit_at_last)
    monkeypatch.setattr(Outbox, "bring_to_disk", lambda _, entry: brought.append(entry.name))
    assert run_trial(place, tmp_path / "drain") is Outcome.ENDED
    assert (len(brought), refused) == (1, [0, 1, 1])
    assert place.leases.record(0).state is TrialState.COMPLETE


def test_what_is_saved_on_the_way_out_is_not_copied_before(desk, gate):
    place = desk()
    trial = place.claim()
    gate.open()
    place.drain.set()
    with pytest.raises(DrainRequested):
        trial.progress(1)
    trial.save_checkpoint(1, {"step": 1})
    assert gate.writes == [(threading.current_thread().name, 1)]
    assert place.leases.record(0).checkpoint.step == 1
