"""The options of the built-in trainer: each trains, is resumed to the bit, and does something."""

from __future__ import annotations

import json

import pytest
import torch
from desk import as_the_first, assert_equal, resumed_after, run, study_of

from workers.managers import ModelManager


class Trained:
    """What a training came to."""

    def __init__(self, container, trial):
        self.values = run(container, trial)
        self.attrs = trial.user_attrs
        folder = trial.result_directory
        self.written = json.loads((folder / "metrics.json").read_text())
        self.evaluations = [
            {name: value for name, value in each.items() if name != "texts_per_second"}
            for each in self.written["evaluations"]
        ]
        self.steps = [each["step"] for each in self.evaluations]
        self.weights = container.get(ModelManager).load(folder / "model").state_dict()


def of_the_best(trained):
    losses = [each["loss"] for each in trained.evaluations]
    assert trained.steps == [2, 4, 6, 7]
    assert trained.values["loss"] == min(losses) < losses[-1], "or this tells nothing"
    best = losses.index(min(losses))
    assert trained.written["result_step"] == trained.attrs["best_step"] == trained.steps[best]


def ended_early(trained):
    assert trained.steps == [3, 6, 9]
    assert trained.attrs["stopped_early_at"] == 9


def ended_at_the_limit(trained):
    assert trained.steps == [4, 7, 9]
    assert "stopped_early_at" not in trained.attrs


def ended_with_the_last_batch(trained):
    assert trained.steps == [2, 5, 8, 10], "112 texts of 5 tokens, 24 a step, and twice"


def slowed_down(trained):
    rates = [each["learning_rate"] for each in trained.evaluations]
    assert rates == [0.02, 0.01, 0.005, 0.0025], "no evaluation was better by so much"


def left_what_is_frozen(trained):
    moved = {name for name, weight in trained.weights.items() if has_moved(weight)}
    assert not any("embeddings" in name or "attention" in name for name in moved)
    assert {"bert.pooler.dense.bias", "classifier.bias"} <= moved


def has_moved(bias):
    """A bias begins as zeros; what is weighed otherwise cannot be told by itself."""
    return bias.ndim == 1 and bool(bias.count_nonzero()) and not bool((bias == 1).all())


#: Settings, the step before which the training is drained, and what they come to.
OPTIONS = {
    "best": (
        {
            "objective": "best",
            "evaluate_every": {"steps": 2},
            "learning_rate": 0.03,
            "schedule": "constant",
            "warmup_fraction": 0.0,
        },
        5,
        of_the_best,
    ),
    "early": (
        {
            "early_stopping": {"patience": 2, "min_delta": 9.0},
            "evaluate_every": {"steps": 3},
            "epochs": 9,
        },
        5,
        ended_early,
    ),
    "plateau": (
        {
            "optimizer": "sgd",
            "optimizer_options": {"momentum": 0.9, "nesterov": True},
            "learning_rate": 0.02,
            "schedule": "reduce_lr_on_plateau",
            "schedule_options": {"factor": 0.5, "patience": 0, "threshold": 0.9},
            "gradient_accumulation_steps": 4,
            "max_grad_norm": None,
            "evaluate_every": {"steps": 2},
        },
        5,
        slowed_down,
    ),
    "frozen": (
        {
            "freeze": ["embeddings", "encoder.layer.0-0.attention"],
            "gradient_checkpointing": True,
            "class_weights": {"0": 3.0},
            "micro_batch_size": 5,
        },
        4,
        left_what_is_frozen,
    ),
    "tokens": (
        {
            "batch_tokens": 120,
            "eval_batch_tokens": 60,
            "epochs": 2,
            "evaluate_every": {"epochs": 0.5},
            "log_every_steps": 3,
        },
        7,
        ended_with_the_last_batch,
    ),
    "max_steps": (
        {"max_steps": 9, "evaluate_every": {"epochs": 0.5}, "log_every_steps": 4},
        5,
        ended_at_the_limit,
    ),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_what_is_trained_with_an_option_is_resumed_to_the_bit(
    desk, container, texts, option, capsys
):
    settings, drained_at, check = OPTIONS[option]
    place = desk(**short_study(texts, **settings))
    whole = Trained(container, place.claim(0))
    check(whole)
    assert ("tokens_per_second" in capsys.readouterr().out) == ("log_every_steps" in settings)
    resumed = resumed_after(place, drained_at)
    again = Trained(container, resumed)
    assert resumed.attempt == 2
    assert again.values == whole.values
    assert again.evaluations == whole.evaluations
    assert again.written["result_step"] == whole.written["result_step"]
    assert_equal(again.weights, whole.weights)


def test_the_model_of_the_best_evaluation_is_the_one_that_is_left(desk, container, texts):
    place = desk(**short_study(texts, **OPTIONS["best"][0]))
    best = Trained(container, place.claim(0))
    of_the_best(best)
    until_then = {"max_steps": best.written["result_step"], "objective": "last"}
    last = Trained(container, as_the_first(place, place.claim(1, until_then)))
    assert last.values == best.values
    assert_equal(last.weights, best.weights)


def test_however_long_texts_are_each_counts_alike_in_batches_of_tokens(desk, container, tmp_path):
    path = tmp_path / "lengths.csv"
    rows = [(f"a {n % 7}", 0) if n % 4 else (f"b {n} " * 5, 1) for n in range(120)]
    path.write_text("\n".join(["text,label", *(f"{text},{label}" for text, label in rows)]))
    rule = {"dropout": 0.0, "epochs": 1, "weight_decay": 0.0, "max_grad_norm": None, "seed": 1}
    rule |= {"optimizer": "sgd", "schedule": "constant", "warmup_fraction": 0.0}
    place = desk(**short_study(path, batch_tokens=24, **rule))
    parts = Trained(container, place.claim(0, {"learning_rate": 1e-4}))
    num_steps = parts.steps[-1]
    assert num_steps > 20
    whole = {"batch_tokens": 9999, "learning_rate": 1e-4 * num_steps}
    at_once = Trained(container, place.claim(1, whole))
    assert at_once.steps[-1] == 1
    bias = at_once.weights["classifier.bias"]
    # the rates are so small that it is one gradient, however many steps it is gone along
    torch.testing.assert_close(parts.weights["classifier.bias"], bias, rtol=0.02, atol=0.0)
    assert parts.evaluations[0]["train_loss"] == pytest.approx(
        at_once.evaluations[0]["train_loss"], rel=1e-3
    )


def short_study(texts, **settings):
    """One pass of 7 steps, and the model is left, unless the settings say something else."""
    study = {**study_of(texts, save_model="all", **settings)}
    study |= {"metric": "loss", "direction": "minimize", "sampler": {"seed": 1}}
    del study["config"]["evaluations_per_epoch"]
    if "batch_tokens" in settings:
        del study["config"]["batch_size"]
    if "epochs" not in settings:
        del study["config"]["epochs"]
        if "max_steps" not in settings:
            study["config"]["epochs"] = 1
    return study
