"""`finetune` on a CUDA device: it learns, goes on, finds room, shares a card, survives a kill."""

from __future__ import annotations

import json
import os
import signal

import pytest
from structlog.testing import capture_logs
from waiting import wait_until

pytestmark = pytest.mark.gpu

WORDS = ["red", "green", "blue", "one", "two", "three"]


@pytest.fixture
def texts(tmp_path):
    """Texts of some hundred words, whose first one tells the class."""
    path = tmp_path / "texts.csv"
    filling = " ".join(WORDS[:2] * 50)
    rows = [f"{WORDS[i % 6]} {i % 11} {filling},{i % 3}" for i in range(800)]
    path.write_text("\n".join(["text,label", *rows]))
    return path


@pytest.fixture
def place(client, settings, texts, monkeypatch):
    """Where trials of a study run in this process."""
    from desk import Desk, study_of

    from workers.containers import Container
    from workers.managers import MANAGERS
    from workers.processes.registry import ProcessRecord
    from workers.protocol.spec import StudySpec

    monkeypatch.setenv("WANDB_MODE", "disabled")
    model = {"architecture": "bert", "hidden_size": 64, "num_hidden_layers": 2}
    data = {"source": str(texts), "max_length": 96, "validation_fraction": 0.2}
    study = study_of(texts, model=model, data=data, epochs=4, batch_size=64, learning_rate=2e-3)
    with Container(MANAGERS, [settings, ProcessRecord()]) as opened:
        yield Desk(client, settings, opened, StudySpec(name="s", **study))


def evaluations(trial):
    return json.loads((trial.result_directory / "metrics.json").read_text())["evaluations"]


def test_finetune_learns_on_the_device(place):
    from desk import run

    from workers.managers import CUDAManager

    assert place.container.get(CUDAManager).device.type == "cuda"
    trial = place.claim()
    values = run(place.container, trial)
    found = evaluations(trial)
    assert found[-1]["train_loss"] < found[0]["train_loss"] / 2
    assert values["accuracy"] > 0.9


def test_a_training_that_was_drained_goes_on_where_it_was(place):
    from desk import resumed_after, run

    first = place.claim(0)
    whole = run(place.container, first)
    resumed = resumed_after(place, 25)
    assert resumed.load_checkpoint()["step"] == 25
    again = run(place.container, resumed)
    measured = [
        [{**each, "texts_per_second": 0.0} for each in evaluations(trial)]
        for trial in (first, resumed)
    ]
    for one, other in zip(*measured, strict=True):
        # a GPU adds up in whatever order
        assert other == pytest.approx(one, rel=0.2, abs=0.05)
    assert again["accuracy"] == pytest.approx(whole["accuracy"], abs=0.05)


def test_where_memory_runs_out_finetune_makes_its_batches_in_parts(place):
    import torch
    from desk import run

    wide = {"model.hidden_size": 512, "model.num_hidden_layers": 4, "epochs": 1}

    def peak(number, batch_size):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run(place.container, place.claim(number, {**wide, "batch_size": batch_size}))
        return torch.cuda.max_memory_reserved()

    little, much = peak(0, 32), peak(1, 512)
    assert much > 2 * little
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((little + much) / 2 / total)
    try:
        short = place.claim(2, {**wide, "batch_size": 512})
        with capture_logs() as logs:
            run(place.container, short)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    halved = [log["micro_batch_size"] for log in logs if log["event"] == "out_of_memory"]
    assert halved
    assert min(halved) >= 32, "which is known to fit"
    assert evaluations(short)[-1]["train_loss"] > 0


MEETS = """

def meets(trial):
    '''Trains when another process is about to on the same card.'''
    import time

    weight = torch.ones(1000, 1000, device="cuda", requires_grad=True)
    note(trial, "starts", 0)
    until = time.monotonic() + 200
    while (HERE / "notes").read_text().count("starts") < 2 and time.monotonic() < until:
        time.sleep(0.05)
    for _ in range(200):
        loss = (weight @ weight).square().mean()
        weight.grad = None
        loss.backward()
        with torch.no_grad():
            weight -= 0.1 * weight.grad / weight.grad.norm()
    note(trial, torch.cuda.get_device_properties(0).uuid, 200)
    return float(loss)
"""


@pytest.fixture
def fleet(tmp_path):
    from fault_fleet import FaultFleet

    made = FaultFleet(tmp_path)
    made.start()
    path = tmp_path / "faulty.py"
    path.write_text(path.read_text() + MEETS)
    yield made
    made.stop()
    made.assert_nothing_left()


@pytest.mark.timeout(300)
def test_two_processes_train_on_one_card_at_a_time(fleet):
    fleet.submit(2, "meets")
    fleet.serve()
    fleet.worker(2, CUDA_VISIBLE_DEVICES="0")
    fleet.await_over(240)
    assert [trial.state.name for trial in fleet.trials()] == ["COMPLETE"] * 2
    ended = [note for note in fleet.notes() if note.step == 200]
    assert len({note.pid for note in ended}) == 2
    assert len({note.what for note in ended}) == 1, "the card's name"


@pytest.mark.timeout(300)
def test_a_killed_training_goes_on_in_a_new_process_on_the_device(fleet, texts):
    study = {
        "name": "killed",
        "objective": "finetune",
        "direction": "maximize",
        "metric": "accuracy",
        "trials": 1,
        "config": {
            "data": {"source": str(texts), "max_length": 96},
            "model": {"architecture": "bert", "hidden_size": 64, "num_hidden_layers": 1},
            "tokenizer": {"vocab_size": 80},
            "epochs": 10,
            "checkpoint_interval_seconds": 0.0,
        },
    }
    fleet.hand_in(study)
    fleet.serve()
    fleet.worker(1, CUDA_VISIBLE_DEVICES="0")
    wait_until(lambda: fleet.events("claimed"), "it has begun", 200)
    saved = wait_until(lambda: fleet.record().checkpoint, "it has a checkpoint", 200)
    trainer = next(entry for entry in fleet.processes("trial") if entry.trial == 0)
    os.kill(trainer.identity.pid, signal.SIGKILL)
    fleet.await_over(240)
    (trial,) = fleet.trials()
    assert trial.state.name == "COMPLETE"
    assert trial.user_attrs["trialfleet:attempt"] == 2
    assert fleet.events("resumed")[-1]["step"] >= saved.step
    assert fleet.events("slot_refused") == []
