"""The benchmark of training runs: one task by each side, as small as can be."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

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


@pytest.mark.parametrize(
    "precision",
    ["auto", pytest.param("bf16", marks=pytest.mark.long)],  # which a CPU takes its time for
)
def test_each_side_trains_on_the_same_texts_and_is_measured_alike(container, tmp_path, precision):
    known = training.cases(tmp_path, epochs=1, steps=1, files=8, precision=precision)
    bench = training.Bench(known["source"], managers_of(container), tmp_path, time.perf_counter)
    sides = ["finetune", "trainer", "grouped", "loop"]
    figures = training.measure(bench, sides, seeds=1)
    for side in sides:
        assert figures[side]["per_second"] > 0
        wanted = "fp32" if precision == "auto" else precision
        assert figures[side]["work"].endswith(f", {wanted}")
        assert "gpu_busy" not in figures[side], "there is none"
    assert set(figures["finetune_by"]) == {"trainer", "grouped", "loop"}
    values = [figures[side]["value"] for side in sides[:3]]
    assert all(math.isfinite(value) for value in values)
    # the mean loss a token after one step, which `Trainer` makes at a rate that is still zero
    assert values == pytest.approx([values[0]] * 3, rel=0.1)


def test_how_busy_a_gpu_was_is_the_mean_of_what_nvml_told():
    root = Path(__file__).parents[2]
    program = (
        "import threading\n"
        "from gpu_busy import GpuBusy\n"
        "busy = GpuBusy()\n"
        "assert busy.share is None\n"
        "with busy.watching():\n"
        "    while busy.share is None: threading.Event().wait(0.05)\n"
        "print(busy.share)\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root / "tests/fake_nvml"), str(root / "ops/bench")]),
        "FAKE_NVML": '[["GPU-0", null]]',
    }
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    command = [sys.executable, "-c", program]
    told = subprocess.check_output(command, env=environment, text=True, timeout=60)
    assert told.strip() == "0.75"
