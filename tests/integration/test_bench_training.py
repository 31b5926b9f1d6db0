"""The benchmark of training runs: one task by each side, as small as can be."""

from __future__ import annotations

import math
import time

import pytest
import torch
import training
from alone import managers_of


@pytest.fixture(autouse=True)
def one_thread():
    """Two that wait for one another are slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_each_side_trains_on_the_same_texts_and_is_measured_alike(container, tmp_path):
    known = training.cases(tmp_path, epochs=1, steps=1, files=8)
    bench = training.Bench(known["source"], managers_of(container), tmp_path, time.perf_counter)
    sides = ["finetune", "trainer", "grouped", "loop"]
    figures = training.measure(bench, sides, seeds=1)
    for side in sides:
        assert figures[side]["per_second"] > 0
    assert set(figures["finetune_by"]) == {"trainer", "grouped", "loop"}
    values = [figures[side]["value"] for side in sides[:3]]
    assert all(math.isfinite(value) for value in values)
    # the mean loss a token after one step, which `Trainer` makes at a rate that is still zero
    assert values == pytest.approx([values[0]] * 3, rel=0.1)
