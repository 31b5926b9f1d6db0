from __future__ import annotations

import pytest
import torch
from structlog.testing import capture_logs

from workers.managers import ModelManager
from workers.managers.pretrained_head import rows_of, weights_per_class
from workers.protocol.finetune import ModelConfig

HEADS = {
    "bert": {"classifier.weight", "classifier.bias"},
    "roberta": {"classifier.out_proj.weight", "classifier.out_proj.bias"},
    "llama": {"score.weight"},
    "xlnet": {"logits_proj.weight", "logits_proj.bias"},
    "bart": {"classification_head.out_proj.weight", "classification_head.out_proj.bias"},
}


def build(container, seed=1, **fields):
    torch.manual_seed(seed)
    labels = fields.pop("labels")
    return container.get(ModelManager).sequence_classifier(
        ModelConfig(**fields), labels=labels, vocab_size=50, pad_token_id=0
    )


def small(architecture, **more):
    return {"architecture": architecture, "hidden_size": 32, "num_hidden_layers": 1, **more}


@pytest.fixture
def saved(container, tmp_path):
    """A classifier of sentiments, in the order that one may be saved in."""
    model = build(container, **small("bert"), labels=("NEGATIVE", "NEUTRAL", "POSITIVE"))
    container.get(ModelManager).save(model, tmp_path / "saved")
    return model


@pytest.mark.parametrize("architecture", HEADS)
def test_the_weights_of_the_classes_are_found_in_any_architecture(container, architecture):
    # as many classes as the model is wide: what tells them apart is not the number
    labels = [str(number) for number in range(32)]
    model = build(container, **small(architecture), labels=labels)
    assert weights_per_class(model.config) == HEADS[architecture]


@pytest.mark.parametrize(
    ("labels", "rows"),
    [
        (("NEGATIVE", "NEUTRAL", "POSITIVE"), [0, 1, 2]),
        (("positive", "neutral", "negative"), [2, 1, 0]),
        (("negative", "positive"), [0, 2]),
    ],
)
def test_a_head_is_kept_for_the_classes_it_was_trained_for(
    container, saved, tmp_path, labels, rows
):
    for _ in range(2):  # cold, then warm
        model = build(container, seed=7, id=str(tmp_path / "saved"), labels=labels)
        assert torch.equal(model.classifier.weight, saved.classifier.weight[rows])
        assert torch.equal(model.classifier.bias, saved.classifier.bias[rows])
        assert model.config.id2label == dict(enumerate(labels))
        assert model.config.label2id == {label: row for row, label in enumerate(labels)}
    whole, base = saved.bert.state_dict(), model.bert.state_dict()
    assert all(torch.equal(whole[name], base[name]) for name in whole)


@pytest.mark.parametrize(
    "labels", [("joy", "anger", "fear"), ("negative", "neutral", "mixed"), ("a", "b"), "abcdef"]
)
def test_a_head_for_other_classes_is_drawn_and_that_is_said(container, saved, tmp_path, labels):
    with capture_logs() as logs:
        one = build(container, seed=7, id=str(tmp_path / "saved"), labels=labels)
    said = next(entry for entry in logs if entry["event"] == "head_replaced")
    assert said["log_level"] == "warning"
    assert said["saved"] == ["NEGATIVE", "NEUTRAL", "POSITIVE"]
    assert said["wanted"] == list(labels)[:5]
    assert one.classifier.weight.shape == (len(labels), 32)
    rows = {tuple(row.tolist()) for row in saved.classifier.weight}
    assert not rows & {tuple(row.tolist()) for row in one.classifier.weight}
    again = build(container, seed=7, id=str(tmp_path / "saved"), labels=labels)
    other = build(container, seed=8, id=str(tmp_path / "saved"), labels=labels)
    assert torch.equal(one.classifier.weight, again.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight)


def test_without_names_a_head_of_as_many_classes_is_kept_as_it_is(container, saved, tmp_path):
    model = container.get(ModelManager).sequence_classifier(
        ModelConfig(id=str(tmp_path / "saved")), num_labels=3, vocab_size=50
    )
    assert torch.equal(model.classifier.weight, saved.classifier.weight)


@pytest.mark.parametrize(
    ("names", "classes", "rows"),
    [
        ({0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}, ["2", "0"], [2, 0]),
        ({0: "LABEL_0", 1: "LABEL_1"}, ["LABEL_1", "LABEL_0"], [1, 0]),
        ({0: "LABEL_0", 1: "LABEL_1"}, ["neg", "pos"], None),
        ({0: "0", 1: "1"}, ["1", "0"], [1, 0]),
        ({0: "a", 1: "A"}, ["A", "a"], [1, 0]),
        ({0: "a", 1: "A"}, [" a", "A "], None),
        ({0: "a", 1: "a"}, ["a", "b"], None),
        ({0: "Positive ", 1: "negative"}, ["NEGATIVE", "positive"], [1, 0]),
    ],
)
def test_classes_are_matched_by_name(names, classes, rows):
    assert rows_of(names, classes) == rows
