"""What makes a training's batches ahead: a thread, which ends with the training."""

from __future__ import annotations

import threading

import pytest
import torch
from desk import StepTrial, run, study_of

from workers.managers.device_copies import DeviceCopies
from workers.managers.tensor import TensorManager
from workers.managers.tokenized import PaddingCollator
from workers.protocol.errors import DrainRequested


def prefetching():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


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
