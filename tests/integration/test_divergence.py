"""Trainings whose loss becomes NaN or infinite, by real weights and rates."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from desk import StepTrial, run, study_of
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from workers.protocol.errors import DrainRequested, ObjectiveError
from workers.trials.objectives import call_objective

STUDIES = Path(__file__).parents[2] / "ops" / "studies"

#: At which attention's scores leave float32's range after some steps.
TOO_HIGH = 2.0**13


def refusal(container, trial):
    with pytest.raises(ObjectiveError) as caught:
        run(container, trial)
    return str(caught.value)


def evaluations(trial):
    found = json.loads((trial.result_directory / "metrics.json").read_text())["evaluations"]
    return [{**entry, "texts_per_second": 0.0} for entry in found]


def test_a_loss_that_is_no_number_ends_the_trial_with_step_rate_and_the_loss_before(
    desk, container, texts
):
    config = {"learning_rate": 1e30, "warmup_fraction": 0.0, "schedule": "constant"}
    place = desk(**study_of(texts, **config, checkpoint_interval_seconds=0.0))
    said = refusal(container, place.claim())
    assert said.startswith("the loss is nan at step 2 (learning rate 1e+30; loss before: 1.")
    assert said.endswith("max_grad_norm, or let on_divergence be skip or rollback")
    assert not place.inbox(), "nothing is reported"
    assert place.leases.record(0).checkpoint.step == 1


def test_weights_that_are_no_numbers_are_not_saved(desk, container, texts):
    config = {"learning_rate": 1e38, "warmup_fraction": 0.0}
    place = desk(**study_of(texts, **config, checkpoint_interval_seconds=0.0))
    # the step is the first, of a finite loss and finite gradients
    assert refusal(container, place.claim()).startswith("a weight is no finite number at step 1 ")
    assert place.leases.record(0).checkpoint is None
    drained = place.claim(1, {"checkpoint_interval_seconds": 100.0})
    with pytest.raises(DrainRequested):
        run(container, StepTrial(drained, 1, place.drain.set))
    assert place.leases.record(1).checkpoint is None


def test_a_training_is_rolled_back_until_its_rate_is_low_enough(desk, container, texts):
    config = {"on_divergence": "rollback", "max_divergences": 10, "learning_rate": TOO_HIGH}
    study = study_of(texts, **config, evaluate_every={"steps": 99})  # so that it goes back to 0
    del study["config"]["evaluations_per_epoch"]
    place = desk(**study)
    first = place.claim(0)
    values = run(container, first)
    count = first.user_attrs["rollbacks"]
    assert 2 <= count <= 10

    slower = place.claim(1, {"learning_rate": TOO_HIGH * 0.5**count})
    slower.seed = first.seed
    assert run(container, slower) == values
    assert evaluations(slower) == evaluations(first)
    assert "rollbacks" not in slower.user_attrs

    broken_off = place.claim(2)
    broken_off.seed = first.seed
    with pytest.raises(DrainRequested):
        run(container, StepTrial(broken_off, 20, place.drain.set))
    place.drain.clear()
    assert place.leases.release(2, place.held.token)
    resumed = place.claim(2)
    resumed.seed = first.seed
    assert run(container, resumed) == values
    assert resumed.user_attrs["rollbacks"] == count

    refused = place.claim(3, {"max_divergences": 1})
    assert "after it was rolled back 1 times; lower" in refusal(container, refused)


@pytest.fixture
def poisoned(desk, container, texts, tmp_path):
    """A study of a pretrained model in which one word leads out of float32's range."""
    trial = desk(**study_of(texts, save_model="all", epochs=1)).claim(9)
    run(container, trial)
    folder = trial.result_directory / "model"
    word = AutoTokenizer.from_pretrained(folder)("blue", add_special_tokens=False)["input_ids"][0]
    held = load_file(folder / "model.safetensors")
    held["bert.embeddings.word_embeddings.weight"][word] = torch.finfo(torch.float32).max
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    rows = [line for line in texts.read_text().splitlines() if "blue" not in line]
    held_out = tmp_path / "held_out.csv"
    held_out.write_text("\n".join(rows))
    source = tmp_path / "some_blue.csv"
    source.write_text("\n".join([*rows, "blue blue,0", "one blue,2"]))

    def make(**config):
        data = {"source": str(source), "validation": str(held_out), "max_length": 12}
        return desk(**study_of(texts, **{"data": data, "model": {"id": str(folder)}, **config}))

    return make


class DrainedWhenRolledBack:
    """A trial whose worker drains when its training first goes back."""

    def __init__(self, trial, drain):
        self._trial, self._drain = trial, drain
        self._step = 0

    def __getattr__(self, name):
        return getattr(self._trial, name)

    def progress(self, step, **told):
        if step < self._step:
            self._drain()
        self._step = step
        self._trial.progress(step, **told)


def test_what_was_reported_is_not_taken_back_and_a_drain_keeps_the_lower_rate(
    desk, container, texts
):
    # at this rate it diverges after the first evaluation
    config = {"on_divergence": "rollback", "max_divergences": 10, "learning_rate": 666.0}
    study = {**study_of(texts, **config), "metric": "loss", "direction": "minimize"}
    place = desk(**study)
    first = place.claim(0)
    values = run(container, first)
    count = first.user_attrs["rollbacks"]
    reports = [(entry.subject, entry.payload) for entry in place.inbox()]
    assert reports == [
        (str(number), entry["loss"]) for number, entry in enumerate(evaluations(first), 1)
    ]

    drained = place.claim(1)
    drained.seed = first.seed
    with pytest.raises(DrainRequested):
        run(container, DrainedWhenRolledBack(drained, place.drain.set))
    place.drain.clear()
    assert place.leases.release(1, place.held.token)
    resumed = place.hold(1)
    resumed.seed = first.seed
    assert resumed.load_checkpoint()["rollbacks"] == 1
    assert run(container, resumed) == values
    assert resumed.user_attrs["rollbacks"] == count


def example(name, folder):
    """An example's module, whose learning rate may be any."""
    text = (STUDIES / f"{name}.py").read_text()
    assert text.count("1e-3, 3e-2") == 1
    path = folder / f"{name}_that_diverges.py"
    path.write_text(text.replace("1e-3, 3e-2", "1e-3, 1e31"))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore::Warning:lightning")  # its advice
@pytest.mark.parametrize("name", ["loop", "lightning_trainer"])
def test_an_example_of_another_loop_that_diverges_has_no_value(
    desk, container, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    config = {"max_length": 8, "vocab_size": 300, "epochs": 1, "checkpoint_seconds": 1000}
    place = desk(direction="maximize", config=config)
    trial = place.claim(0, {"width": 32, "dropout": 0.0, "learning_rate": 1e30})
    said = r"(weight .* is no finite number|the loss is (nan|inf)) .*at step \d+.* diverged; lower"
    with pytest.raises(ObjectiveError, match=said):
        call_objective(example(name, tmp_path).objective, trial, container)
    assert not place.inbox(), "nothing is reported"


def test_batches_of_no_finite_loss_are_left_out_and_counted(poisoned, container):
    place = poisoned(on_divergence="skip", max_divergences=2)
    trial = place.claim(0)
    values = run(container, trial)
    assert trial.user_attrs["batches_left_out"] in range(3, 7), "two texts in each of three epochs"
    assert all(math.isfinite(value) for value in values.values())
    assert all(math.isfinite(entry["train_loss"]) for entry in evaluations(trial))


def test_too_many_batches_in_a_row_end_the_trial(poisoned, container):
    place = poisoned(on_divergence="skip", max_divergences=2, batch_size=128)
    said = refusal(container, place.claim(0))
    assert said.startswith("the loss is nan, as in the 2 batches before, which were left out, at ")
    assert "no loss was finite before" in said


def test_an_evaluation_that_is_no_number_is_not_reported(desk, container, texts, poisoned):
    good = poisoned().spec.config
    data = {**good["data"], "validation": str(texts)}
    for mode in ("fail", "skip"):
        place = poisoned(on_divergence=mode, data=data, max_divergences=100)
        trial = place.claim(
            {"fail": 1, "skip": 2}[mode], {"data.source": good["data"]["validation"]}
        )
        said = refusal(container, trial)
        assert said.startswith("accuracy on the held-out texts is nan at step "), mode
        assert "loss before: " in said
    assert not [entry for entry in place.inbox() if entry.number != 9]
