"""Slots that are sick: a GPU that breaks what it runs, CUDA that is not there, a bad process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from waiting import wait_until

from orchestrator.handle import StudyHandle
from workers.coordination.studies import Studies
from workers.protocol.spec import StudySpec

GPUS = [f"GPU-{index}{'0' * 7}-1111-2222-3333-444455556666" for index in range(2)]

OBJECTIVES = '''
import os
import time

import torch

BROKEN = (
    "CUDA error: {}\\nCUDA kernel errors might be asynchronously reported at some other API call,"
    " so the stacktrace below might be incorrect.\\nCompile with `TORCH_USE_CUDA_DSA` to enable"
    " device-side assertions."
)


def poisoned(trial):
    """Broken by one GPU of the two; whatever it raises, it is the same each time."""
    if os.environ["CUDA_VISIBLE_DEVICES"] == "0":
        raise torch.AcceleratorError(BROKEN.format(trial.config["error"]))
    time.sleep(0.1)
    return 1.0


def wrong(trial):
    """Asserts on its labels, wherever it runs."""
    raise torch.AcceleratorError(BROKEN.format("device-side assert triggered"))


def slow(trial):
    time.sleep(0.5)
    return 1.0


def fails(trial):
    raise ValueError("simply wrong")


def fails_in_other_words(trial):
    raise ValueError(os.urandom(8).hex())


def plain(trial):
    return 1.0


def in_a_sick_process(trial):
    """Fails in one process alone, the first that ran a trial."""
    marker = os.path.join(os.path.dirname(__file__), "first")
    if not os.path.exists(marker):
        open(marker, "w").write(str(os.getpid()))
    if open(marker).read() == str(os.getpid()):
        raise OSError(24, "Too many open files")
    time.sleep(0.4)
    return 1.0
'''


@pytest.fixture
def sick(fleet):
    """A fleet whose workers believe in two GPUs."""
    path = fleet.folder / "faulty.py"
    path.write_text(path.read_text() + OBJECTIVES)
    fleet.gpus = {
        "PYTHONPATH": str(Path(__file__).parents[1] / "fake_nvml"),
        "FAKE_NVML": json.dumps([[uuid, None] for uuid in GPUS]),
        "FLEET_GPU_LOCKS": str(fleet.folder / "gpus"),
    }
    return fleet


def submit(fleet, objective, trials, **fields):
    fleet.submit(trials, objective, **fields)
    fleet.serve()


def states(fleet):
    return [trial.user_attrs.get("trialfleet:state", trial.state.name) for trial in fleet.trials()]


def refusing(fleet):
    return [entry for entry in fleet.processes("trial") if entry.aside is not None]


@pytest.mark.parametrize(
    "error",
    [
        "device-side assert triggered",
        pytest.param("unspecified launch failure", marks=pytest.mark.long),
    ],
)
def test_one_poisoned_gpu_of_two_costs_no_trial_and_is_put_aside(sick, error):
    submit(sick, "poisoned", 10_000, config={"error": error}, max_failures=1)
    worker = sick.worker(2, FAKE_CUDA="works", **sick.gpus)
    wait_until(lambda: refusing(sick), "it has broken two that succeeded elsewhere", 150.0)
    StudyHandle("fault", sick.settings).stop()
    sick.await_over()
    assert set(states(sick)) <= {"COMPLETE", "CANCELLED"}, "what was stopped before it began"
    assert max(trial.user_attrs.get("trialfleet:losses", 0) for trial in sick.trials()) <= 1
    (entry,) = wait_until(lambda: refusing(sick), "its slot says so")
    assert entry.device.endswith(GPUS[0])
    assert "restart its worker to take it back" in entry.aside
    status = StudyHandle("fault", sick.settings).status()
    assert status.slots == 1
    assert f"0 ({GPUS[0][:12]})" in status.put_aside[0]
    assert status.losses >= 2, "it takes two that succeeded elsewhere"
    codes = {event["kind"] for event in sick.events("cuda_broken")}
    assert len(codes) == 1
    assert [event["device"] for event in sick.events("slot_refused")] == [entry.device]
    # the restart of its worker takes it back
    worker.stop(60.0)
    sick.worker(1, FAKE_CUDA="works", **sick.gpus)
    (slot,) = wait_until(lambda: sick.processes("trial"), "its slot is there")
    assert (slot.device, slot.aside) == (entry.device, None)


def test_labels_that_are_wrong_everywhere_fail_their_trial_soon_and_no_gpu(sick):
    submit(sick, "wrong", 1)
    sick.worker(2, FAKE_CUDA="works", **sick.gpus)
    sick.await_over()
    assert states(sick) == ["FAILED"]
    (trial,) = sick.trials()
    assert trial.user_attrs["trialfleet:attempt"] == 2, "once on each GPU"
    assert "most often a label" in trial.user_attrs["trialfleet:error"]
    assert refusing(sick) == []
    assert sick.events("slot_refused") == []


def test_labels_that_are_wrong_fail_their_trial_on_the_only_gpu_too(sick):
    submit(sick, "wrong", 1)
    sick.worker(1, FAKE_CUDA="works", **{**sick.gpus, "CUDA_VISIBLE_DEVICES": "1"})
    sick.await_over()
    assert states(sick) == ["FAILED"]
    assert refusing(sick) == []


def test_a_slot_that_was_given_a_gpu_and_finds_none_trains_nothing(sick):
    submit(sick, "plain", 2)
    broken = sick.worker(1, **sick.gpus)
    aside = wait_until(lambda: refusing(sick), "its slot refuses trials")[0].aside
    assert "CUDA does not work here" in aside
    assert "CUDA_VISIBLE_DEVICES= runs it on the CPU" in aside
    handle = StudyHandle("fault", sick.settings)
    wait_until(lambda: len(handle.status().put_aside) == 1, "its status, too")
    assert handle.status().slots == 0
    assert not sick.events("claimed")
    sick.worker(1, CUDA_VISIBLE_DEVICES="")
    sick.await_over()
    assert states(sick) == ["COMPLETE"] * 2
    assert broken.poll() is None
    broken.stop(60.0)
    assert sick.events("pool_stuck") == []


def test_a_study_that_fails_everywhere_ends_no_process_and_a_sick_process_is_replaced(sick):
    submit(sick, "fails", 6)
    sick.worker(2)
    sick.await_over()
    assert states(sick) == ["FAILED"] * 6
    assert [trial.user_attrs["trialfleet:attempt"] for trial in sick.trials()] == [2] * 6
    assert len(sick.events("managers_ready")) == 2
    assert not sick.events("process_sick")

    sick.submit(16, "in_a_sick_process", name="sick")
    sick.await_over()
    assert states(sick) == ["COMPLETE"] * 16, "it gives its trials to others"
    assert len(sick.events("process_sick")) == 1
    assert all(sick.record(number).failures <= 1 for number in range(16))


def test_a_trial_that_failed_in_each_process_is_tried_again_at_once(sick):
    submit(sick, "fails_in_other_words", 3, max_failures=4)
    sick.worker(2)
    sick.await_over()
    assert states(sick) == ["DEAD"] * 3
    assert not sick.events("process_ends"), "neither waits for the other"
    for number in range(3):
        failed_in = sick.record(number).failed_in
        assert len(failed_in) == 2, "each process tries it before one does for the second time"


def test_a_worker_that_lacks_an_objective_burns_no_trial_that_another_one_can_run(sick):
    sick.worker(1)
    sick.worker(1, FLEET_OBJECTIVES="another_module")
    wait_until(lambda: len(sick.processes("trial")) == 2, "both take trials")
    submit(sick, "slow", 8)
    sick.await_over()
    assert states(sick) == ["COMPLETE"] * 8
    lacking = {event["pid"] for event in sick.events("attempt_failed")}
    assert len(lacking) == 1, "and its process stays: a fresh one would lack it, too"
    assert len(sick.events("managers_ready")) == 2


@pytest.mark.long
def test_a_worker_whose_data_are_not_mounted_burns_no_trial_that_another_one_can_train(sick):
    homes = [sick.folder / name for name in ("mounted", "unmounted")]
    for home in homes:
        home.mkdir()
    rows = "".join(f"text number {number % 9},{number % 2}\n" for number in range(40))
    (homes[0] / "rows.csv").write_text(f"text,label\n{rows}")
    config = {
        "data": {"source": "~/rows.csv", "max_length": 8},
        "tokenizer": {"vocab_size": 64},
        "model": {"architecture": "bert", "hidden_size": 32, "num_hidden_layers": 1},
        "max_steps": 1,
    }
    # not by the checks of a submission: these make `~` the path of one home
    spec = StudySpec(name="shared", metric="accuracy", trials=12, config=config)
    for home in homes:
        sick.worker(1, HOME=str(home))
    wait_until(lambda: len(sick.processes("trial")) == 2, "both take trials", 120.0)
    sick.study = spec.name
    Studies(sick.client).submit(spec)
    sick.serve()
    sick.await_over()
    assert states(sick) == ["COMPLETE"] * 12
    assert len(sick.events("left_to_others")) == 1, "it takes no second one"
    (refused,) = [entry.refuses for entry in sick.processes("trial") if entry.refuses]
    assert "data.source = '~/rows.csv': there is no such file" in refused["shared"]
