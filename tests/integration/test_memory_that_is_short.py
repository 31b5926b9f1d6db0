"""A training that runs out of its device's memory: its result, its resumption, and the next one."""

from __future__ import annotations

import pytest
import torch
from desk import StepTrial, as_the_first, run, study_of

from workers.managers import BatchManager
from workers.protocol.errors import DrainRequested
from workers.trials.finetune.forward import Forward


class Device:
    """Stands for one whose memory so many tokens fill, with gradients or without."""

    def __init__(self, monkeypatch, tokens):
        self.tokens = tokens
        self.num_shortages = 0
        self.shapes = []
        forward = Forward.__call__

        def bounded(call, batch):
            logits = forward(call, batch)  # random numbers were drawn when memory runs out
            if batch["input_ids"].numel() > self.tokens:
                self.num_shortages += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            self.shapes.append(tuple(batch["input_ids"].shape))
            return logits

        monkeypatch.setattr(Forward, "__call__", bounded)


def test_memory_that_is_short_changes_how_batches_are_cut_and_nothing_else(
    desk, container, texts, monkeypatch
):
    place = desk(**study_of(texts, epochs=1, eval_batch_size=32), sampler={"seed": 1})
    device = Device(monkeypatch, tokens=40)  # 16 texts of 5 tokens are 80, 32 are 160
    whole = run(container, place.claim(0))
    assert device.num_shortages == 2, "one of a step, and one of an evaluation"

    as_before = run(container, as_the_first(place, place.claim(1)))
    assert device.num_shortages == 2, "what fits was remembered"
    assert as_before == whole, "to the bit: a shortage draws no random numbers"

    asked = run(container, as_the_first(place, place.claim(2, {"micro_batch_size": 8})))
    assert asked == whole, "to the bit: it is the same cut"

    device.tokens = 10**6
    monkeypatch.setattr(container.get(BatchManager), "_fitting", {})
    at_once = run(container, as_the_first(place, place.claim(3, {"dropout": 0.0})))
    halves = {"dropout": 0.0, "micro_batch_size": 8}
    cut = run(container, as_the_first(place, place.claim(4, halves)))
    assert cut["loss"] == pytest.approx(at_once["loss"], rel=1e-4)


def test_what_fits_is_known_to_the_attempt_that_resumes_elsewhere(
    desk, container, texts, monkeypatch
):
    place = desk(**study_of(texts, epochs=1), sampler={"seed": 1})
    device = Device(monkeypatch, tokens=40)
    whole = run(container, place.claim(0))
    interrupted = as_the_first(place, place.claim(1))
    with pytest.raises(DrainRequested):
        run(container, StepTrial(interrupted, 5, place.drain.set))
    place.drain.clear()
    assert place.leases.release(1, place.held.token)
    # another process, with a larger GPU
    monkeypatch.setattr(container.get(BatchManager), "_fitting", {})
    device.tokens = 10**6
    device.shapes.clear()
    assert run(container, as_the_first(place, place.hold(1))) == whole
    assert max(rows for rows, _ in device.shapes) <= 8, "as the first attempt cut them"


def test_a_text_that_does_not_fit_by_itself_ends_the_trial_as_out_of_memory(
    desk, container, texts, monkeypatch
):
    place = desk(**study_of(texts, epochs=1))
    Device(monkeypatch, tokens=4)
    with pytest.raises(torch.OutOfMemoryError):
        run(container, place.claim(0))
