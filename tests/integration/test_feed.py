"""What makes a training's batches: for a GPU a thread, ahead, which ends with the training."""

from __future__ import annotations

import threading

import pytest
import torch
from desk import StepTrial, run, study_of

from workers.managers.device_copies import DeviceCopies
from workers.managers.tensor import TensorManager
from workers.managers.tokenized import PaddingCollator
from workers.protocol.errors import DrainRequested
from workers.trials.finetune import feed


@pytest.fixture
def ahead(monkeypatch):
    """Batches are made as for a GPU."""
    monkeypatch.setattr(feed, "is_made_ahead", lambda _: True)


@pytest.fixture
def makers(monkeypatch):
    """The threads that made a batch."""
    names, pad = [], PaddingCollator.__call__

    def note(self, rows):
        names.append(threading.current_thread().name)
        return pad(self, rows)

    monkeypatch.setattr(PaddingCollator, "__call__", note)
    return names


def prefetching():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_on_the_cpu_no_thread_takes_a_core_from_the_training(desk, container, texts, makers):
    place = desk(**study_of(texts))
    run(container, place.claim(0))
    assert set(makers) == {threading.current_thread().name}


def test_a_batch_is_the_same_whoever_makes_it(desk, container, texts, makers, monkeypatch):
    place = desk(**study_of(texts))
    found = run(container, place.claim(0))
    monkeypatch.setattr(feed, "is_made_ahead", lambda _: True)
    trial = place.claim(1)
    trial.seed = place.spec.trial_seed(0)
    assert run(container, trial) == found
    assert set(makers) == {threading.current_thread().name, "prefetch"}


@pytest.mark.usefixtures("ahead")
def test_a_drain_leaves_no_thread_that_makes_batches(desk, container, texts):
    place = desk(**study_of(texts))
    seen = []

    def drain():
        seen.extend(prefetching())
        place.drain.set()

    with pytest.raises(DrainRequested) as caught:
        run(container, StepTrial(place.claim(0), 3, drain))
    assert seen, "batches are made ahead"
    assert caught.value.__traceback__ is not None, "which holds the frames of the training"
    assert not prefetching()


@pytest.mark.usefixtures("ahead")
def test_what_goes_wrong_in_making_a_batch_is_the_trials_error(desk, container, texts, monkeypatch):
    place = desk(**study_of(texts))
    makers, pad = [], PaddingCollator.__call__

    def fail(self, rows):
        makers.append(threading.current_thread().name)
        if len(makers) == 4:
            raise OSError(5, "Input/output error")
        return pad(self, rows)

    monkeypatch.setattr(PaddingCollator, "__call__", fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        run(container, place.claim(0))
    assert set(makers) == {"prefetch"}
    assert "fail" in {entry.name for entry in caught.traceback}
    assert not prefetching()


@pytest.mark.usefixtures("ahead")
def test_where_memory_runs_out_ahead_the_training_makes_room_and_copies_the_batch_itself(
    desk, container, texts, monkeypatch
):
    place = desk(**study_of(texts))
    whole = run(container, place.claim(0))
    begin, clear, sends, cleared = DeviceCopies._begin, TensorManager.clear_memory, [], []

    def fail(self, tensors):
        sends.append(threading.current_thread().name)
        if len(sends) in {3, 4}:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return begin(self, tensors)

    def make_room(self):
        cleared.append(threading.current_thread().name)
        clear(self)

    monkeypatch.setattr(DeviceCopies, "_begin", fail)
    monkeypatch.setattr(TensorManager, "clear_memory", make_room)
    trial = place.claim(1)
    trial.seed = place.spec.trial_seed(0)
    assert run(container, trial) == whole
    assert set(sends) == {"prefetch"}
    assert cleared[:2] == [threading.current_thread().name] * 2
