"""What a training of a pretrained model follows from: its seed and settings, in float32."""

from __future__ import annotations

import json

import pytest
import torch
from desk import StepTrial, run, study_of
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from workers.protocol.errors import DrainRequested


def evaluations(trial):
    found = json.loads((trial.result_directory / "metrics.json").read_text())["evaluations"]
    return [{**entry, "texts_per_second": 0.0} for entry in found]


@pytest.fixture
def pretrained(desk, container, texts, tmp_path):
    """A function from a dtype to a pretrained model without a head, and a tokenizer."""
    trial = desk(**study_of(texts, save_model="all", epochs=1)).claim(9)
    run(container, trial)
    model = trial.result_directory / "model"

    def save(dtype):
        folder = tmp_path / str(dtype)
        whole = AutoModelForSequenceClassification.from_pretrained(model, dtype=dtype)
        whole.bert.save_pretrained(folder)
        AutoTokenizer.from_pretrained(model).save_pretrained(folder)
        return str(folder)

    return save


def test_one_seed_gives_one_result_to_the_bit_whatever_the_process_ran_before(
    desk, container, texts, pretrained
):
    place = desk(**study_of(texts, model={"id": pretrained(torch.float32)}, save_model="all"))
    cold = place.claim(0, {"seed": 5})
    other = place.claim(1, {"seed": 6, "dropout": 0.0, "evaluations_per_epoch": 1})
    warm = place.claim(2, {"seed": 5})
    no_dropout = [place.claim(number, {"dropout": 0.0, "seed": number}) for number in (3, 4)]
    values = run(container, cold)
    run(container, other)
    torch.set_float32_matmul_precision("medium")
    torch.manual_seed(99)
    assert run(container, warm) == values
    assert evaluations(warm) == evaluations(cold)
    for trial in no_dropout:
        run(container, trial)
    found = [evaluations(trial)[0]["train_loss"] for trial in [cold, *no_dropout]]
    assert len(set(found)) == 3, "two seeds give two heads and two orders"
    weights = [
        load_file(each.result_directory / "model" / "model.safetensors") for each in (cold, warm)
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.bfloat16, "bf16"), (torch.float16, "fp32")]
)
def test_a_training_of_half_precision_weights_is_in_float32_and_resumes_so(
    desk, container, texts, pretrained, dtype, precision
):
    config = {"model": {"id": pretrained(dtype)}, "precision": precision}
    place = desk(**study_of(texts, **config, save_model="all"))
    whole = place.claim(0, {"seed": 5})
    values = run(container, whole)
    broken_off = place.claim(1, {"seed": 5})
    with pytest.raises(DrainRequested):
        run(container, StepTrial(broken_off, 10, place.drain.set))
    place.drain.clear()
    assert place.leases.release(1, place.held.token)
    resumed = place.claim(1)
    state = resumed.load_checkpoint()
    moments = [value for each in state["optimizer"]["state"].values() for value in each.values()]
    dtypes = {
        value.dtype
        for value in [*state["model"].values(), *moments]
        if value.dtype.is_floating_point
    }
    assert dtypes == {torch.float32}
    assert run(container, resumed) == values
    model = whole.result_directory / "model"
    saved = load_file(model / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}
    assert AutoConfig.from_pretrained(model).dtype is torch.float32
