from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification, CTRLConfig
from transformers import CTRLForSequenceClassification as Ctrl

from workers.managers.trainable import freeze, prepare
from workers.protocol.errors import UnfitModelError
from workers.protocol.finetune import FinetuneConfig
from workers.trials.finetune.tasks.text_classification import TextClassification


@pytest.fixture
def model():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    with torch.device("meta"):
        return BertForSequenceClassification(BertConfig(**sizes, num_hidden_layers=12))


def frozen(model):
    return {name for name, weight in model.named_parameters() if not weight.requires_grad}


@pytest.mark.parametrize(
    ("pattern", "one", "not_one", "count"),
    [
        ("embeddings", "bert.embeddings.LayerNorm.bias", "classifier.bias", 5),
        ("encoder.layer.0-3", "bert.encoder.layer.3.output.dense.bias", "bert.pooler", 64),
        ("layer.1", "bert.encoder.layer.1.output.dense.bias", "bert.encoder.layer.11", 16),
        ("layer.*.attention", "bert.encoder.layer.9.attention.self.key.bias", "inter", 120),
        ("bert", "bert.pooler.dense.bias", "classifier", 199),
        ("re:layer[.](0|11)[.].*LayerNorm", "bert.encoder.layer.11.output.LayerNorm.bias", "q", 8),
        ("word_embeddings.weight", "bert.embeddings.word_embeddings.weight", "LayerNorm", 1),
    ],
)
def test_a_pattern_freezes_the_weights_of_a_run_of_names(model, pattern, one, not_one, count):
    freeze(model, [pattern])
    assert one in frozen(model)
    assert not any(not_one in name for name in frozen(model))
    assert len(frozen(model)) == count


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["embedings"], "no weights 'embedings'; did you mean 'embeddings'"),
        (["layer.0-12"], r"no weights 'layer.12'; did you mean 'layer."),
        (["re:decoder"], "no weights 're:decoder'"),
        (["bert", "classifier"], "nothing is left to train"),
        (["embed"], "no weights 'embed'"),
    ],
)
def test_a_pattern_that_means_nothing_is_refused(model, patterns, message):
    with pytest.raises(UnfitModelError, match=message):
        freeze(model, patterns)


def test_a_model_that_cannot_compute_anything_twice_says_so():
    with torch.device("meta"):
        model = Ctrl(CTRLConfig(n_embd=8, dff=8, n_layer=1, n_head=2))
    with pytest.raises(UnfitModelError, match="CTRLForSequenceClassification does not support it"):
        prepare(model, FinetuneConfig(gradient_checkpointing=True))


class Examples:
    classes = ("no", "yes", "maybe")
    tokenizer = None

    class train:  # noqa: N801
        labels = torch.tensor([0, 0, 0, 1, 1, 2]).numpy()


class Models:
    def sequence_classifier(self, *_, **__):
        return None


def loss_of(weights, logits, labels):
    task = TextClassification(FinetuneConfig(class_weights=weights))
    task.build_model(Models(), Examples)
    return task.loss(logits, {"labels": labels})


def test_classes_count_as_much_as_the_study_says():
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    each = cross_entropy(logits, labels, reduction="none")
    assert loss_of(None, logits, labels) == cross_entropy(logits, labels)
    expected = (each * torch.tensor([1.0, 4.0, 1.0])[labels]).mean()
    torch.testing.assert_close(loss_of({"yes": 4.0}, logits, labels), expected)
    expected = (each * torch.tensor([2 / 3, 1.0, 2.0])[labels]).mean()
    torch.testing.assert_close(loss_of("balanced", logits, labels), expected)
    with pytest.raises(UnfitModelError, match="class_weights.yess: .*did you mean 'yes'"):
        loss_of({"yess": 2.0}, logits, labels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": ["re:("]}, "'re:.' is no regular expression"),
        ({"class_weights": {"a": 0}}, "weights are numbers over 0"),
        ({"class_weights": "equal"}, "balanced"),
        ({"class_weights": "balanced", "task": "regression"}, "regression has not one class"),
    ],
)
def test_what_cannot_be_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FinetuneConfig.model_validate(settings)
