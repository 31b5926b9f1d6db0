"""What `finetune` learns beside classes: numbers, pairs, and several classes a text."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from desk import resumed_after, run, study_of
from transformers import AutoModelForSequenceClassification

from workers.managers import MetricsManager, ModelManager
from workers.managers.targets import targets_of
from workers.protocol.errors import InvalidInputError, UnfitStudyError
from workers.protocol.finetune import FinetuneConfig
from workers.protocol.tasks import TASKS
from workers.texts.held_out import HeldOut
from workers.trials.finetune.tasks import make_task

WORDS = ("red", "green", "blue", "one", "two", "six")


def rows_of(task, number):
    """Texts whose label can be told from their words."""
    draw = random.Random(number)
    words = draw.choices(WORDS, k=4)
    if task == "multi_label":
        return " ".join(words), "+".join(sorted({*words} & {"red", "one", "six"}))
    return " ".join(words), f"{words.count('red') - words.count('one') / 2}"


@pytest.fixture
def write(tmp_path):
    def write(task, count=120):
        path = tmp_path / f"{task}.csv"
        rows = [rows_of(task, number) for number in range(count)]
        path.write_text("\n".join(["text,label", *(f"{text},{label}" for text, label in rows)]))
        return path

    return write


def task_study(task, path, metric, **data):
    study = study_of(path, task=task, epochs=4, dropout=0.0, evaluations_per_epoch=1)
    study["config"]["data"] |= {"blank": "error", **data}
    return {**study, "metric": metric}


TASK_STUDIES = [
    ("regression", "pearson", {}, 0.4),
    ("multi_label", "auroc", {"label_separator": "+"}, 0.6),
]


@pytest.mark.parametrize(("task", "metric", "data", "least"), TASK_STUDIES)
def test_a_task_is_learned_resumed_to_the_bit_and_left_as_a_model(
    desk, container, write, task, metric, data, least
):
    place = desk(**task_study(task, write(task), metric, **data))
    trial = place.claim(0)
    whole = run(container, trial)
    assert set(whole) == set(TASKS[task].metrics)
    assert whole[metric] > least, whole
    assert run(container, resumed_after(place, 8)) == whole

    folder = trial.result_directory
    written = json.loads((folder / "metrics.json").read_text())
    config = AutoModelForSequenceClassification.from_pretrained(folder / "model").config
    if task == "regression":
        assert (written["classes"], config.num_labels) == ([], 1)
        assert config.problem_type == "regression"
    else:
        assert written["classes"] == list(config.id2label.values()) == ["one", "red", "six"]
        assert config.problem_type == "multi_label_classification"


def test_pairs_are_learned_as_numbers_with_the_head_of_a_saved_model(
    desk, container, write, tmp_path
):
    path = write("regression")
    rows = [line.split(" ", 2) for line in path.read_text().splitlines()[1:]]
    lines = [f"{one} {two},{others}" for one, two, others in rows]
    path.write_text("\n".join(["text,other,label", *lines]))
    study = task_study("regression", path, "spearman", text_pair="other")
    first = desk(**study).claim(0)
    values = run(container, first)
    assert values["spearman"] > 0.3
    saved = first.result_directory / "model"
    study["config"] |= {"model": {"id": str(saved)}, "learning_rate": 1e-9, "epochs": 1}
    study["config"] |= {"tokenizer": {}}
    place = desk(**study)
    assert run(container, place.claim(5))["mse"] == pytest.approx(values["mse"], rel=1e-3)
    assert container.get(ModelManager).load(saved).config.num_labels == 1


@pytest.mark.parametrize("task", TASKS)
def test_a_meter_measures_what_submission_promises(container, task):
    made = make_task(FinetuneConfig(task=task))
    batch = {
        "text_classification": torch.tensor([0, 2, 1]),
        "regression": torch.tensor([0.5, 1.0, -1.0]),
        "multi_label": torch.tensor([[1, 0, 1], [0, 0, 1], [1, 0, 1]], dtype=torch.uint8),
        "token_classification": torch.tensor([[-100, 2, 1]]),
        "causal_lm": torch.tensor([[-100, 2, 1]]),
        "masked_lm": torch.tensor([[1, -100, 0]]),
    }

    class Three:
        classes = ("a", "b", "c")

    meter = made.meter(container.get(MetricsManager), Three)
    logits = torch.tensor([[0.1, 0.2, 0.9], [0.5, 0.2, 0.8], [0.3, 0.9, 0.4]])
    logits = logits[:, :1] if task == "regression" else logits
    logits = logits[None] if TASKS[task].head != "sequence_classifier" else logits
    labels = {"labels": batch[task]}
    for _ in range(2):
        loss = made.evaluation_loss(logits, labels)
        meter.update(*made.measured(logits, labels), loss)
    found = meter.compute()
    assert set(found) == set(TASKS[task].metrics)
    assert found["loss"] == pytest.approx(float(loss))
    assert all(map(math.isfinite, found.values()))
    for _ in range(2):  # a model whose outputs are the same for all has not diverged
        same = torch.zeros_like(logits)
        meter.update(*made.measured(same, labels), made.evaluation_loss(same, labels))
    assert all(map(math.isfinite, meter.compute().values()))
    broken = logits * math.nan
    meter.update(*made.measured(broken, labels), made.evaluation_loss(broken, labels))
    assert all(map(math.isnan, meter.compute().values()))


def test_logits_that_look_like_probabilities_are_not_taken_for_them(container):
    made = make_task(FinetuneConfig(task="multi_label"))
    logits = torch.tensor([[0.1, 0.2], [0.3, 0.4]])  # each a probability over one half
    batch = {"labels": torch.ones(2, 2, dtype=torch.uint8)}

    meter = made.meter(container.get(MetricsManager), SimpleNamespace(classes=("a", "b")))
    meter.update(*made.measured(logits, batch), made.evaluation_loss(logits, batch))
    assert meter.compute()["f1_micro"] == 1.0


@pytest.mark.parametrize("is_searched", [False, True])
def test_a_metric_that_turns_out_to_be_undefined_ends_the_study_or_the_trial(
    desk, container, write, tmp_path, is_searched
):
    path, held_out = write("regression"), tmp_path / "v.csv"
    held_out.write_text("text,label\nred one,0.5\ngreen,0.5\n")
    study = task_study("regression", path, "pearson", validation=str(held_out))
    params = {"data.max_length": 16} if is_searched else {}
    error = InvalidInputError if is_searched else UnfitStudyError
    with pytest.raises(error, match="'pearson' cannot be measured: all held-out") as caught:
        run(container, desk(**study).claim(0, params))
    assert isinstance(caught.value, UnfitStudyError) != is_searched
    values = run(container, desk(**{**study, "metric": "rmse"}).claim(1))
    assert set(TASKS["regression"].metrics) - set(values) == {"pearson", "spearman", "r2"}


HELD_OUT = [
    ("text_classification", ["a", "b", "a"], []),
    ("text_classification", ["a", "a"], ["mcc", "auroc"]),
    ("regression", [0.5, 1.5], []),
    ("regression", [0.5, 0.5], ["pearson", "spearman", "r2"]),
    ("multi_label", [("a",), ("a", "b")], []),
    ("multi_label", [("a", "b"), ("a", "b")], ["auroc"]),
    ("multi_label", [(), ()], ["f1_micro", "f1_macro", "f1_weighted", "auroc"]),
]


@pytest.mark.parametrize(("task", "labels", "undefined"), HELD_OUT)
def test_what_is_said_of_labels_holds_of_what_is_stored_and_of_what_is_measured(
    container, task, labels, undefined
):
    config = FinetuneConfig(task=task)
    classes = () if task == "regression" else ("a", "b", "c")
    targets = targets_of(labels, classes, config.data)
    found = HeldOut.of_targets(targets, classes)
    assert HeldOut.of_labels(Counter(labels), len(classes)) == found
    assert list(found.undefined(task)) == undefined

    meter = make_task(config).meter(container.get(MetricsManager), SimpleNamespace(classes=classes))
    predicted = torch.randn(len(labels), len(classes)) if classes else torch.randn(len(labels))
    meter.update(predicted, torch.from_numpy(targets), torch.tensor(0.0))
    assert set(TASKS[task].metrics) - set(meter.compute()) == set(undefined)


def test_more_scores_than_are_kept_are_said_beforehand():
    assert HeldOut(2**20, 32, 32, has_contrast=True).undefined("text_classification") == {}
    found = HeldOut(2**20, 33, 33, has_contrast=True).undefined("text_classification")
    assert found == {"auroc": "1048576 held-out texts of 33 classes are too many"}
