"""Managers as scripts call them: names and numbers in place of a study's sections."""

from __future__ import annotations

import pytest
import torch

from workers.containers import Container
from workers.managers import MANAGERS, BatchManager, DataManager, MetricsManager, ModelManager
from workers.processes.registry import ProcessRecord
from workers.protocol.errors import InvalidInputError
from workers.protocol.finetune import DataConfig, ModelConfig, TokenizerConfig
from workers.protocol.tasks import TASKS


@pytest.fixture
def container(settings, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with Container(MANAGERS, [settings, ProcessRecord()]) as opened:
        yield opened


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.csv"
    lines = [f"{['red', 'blue', 'green'][i % 3]} {i % 7},{i % 3}" for i in range(60)]
    path.write_text("\n".join(["text,label", *lines]))
    return str(path)


def test_texts_a_model_and_batches_come_from_plain_arguments_and_train(container, texts):
    data = container.get(DataManager).text_classification(texts, max_length=8, vocab_size=70)
    assert len(data.tokenizer) <= 70
    model = container.get(ModelManager).sequence_classifier(
        architecture="bert",
        hidden_size=16,
        num_hidden_layers=1,
        labels=data.classes,
        tokenizer=data.tokenizer,
        max_length=8,
    )
    batches = container.get(BatchManager).training_batches(data.train.lengths, 8, seed=0, epoch=0)
    loader = container.get(DataManager).loader(
        data.train, batches, pad_id=data.tokenizer.pad_token_id
    )
    meter = container.get(MetricsManager).classification(len(data.classes))
    for batch in loader:
        output = model(**batch)
        output.loss.backward()
        meter.update(output.logits, batch["labels"], output.loss)
    assert set(meter.compute()) == set(TASKS["text_classification"].metrics)


def test_plain_arguments_give_what_sections_give(container, texts, tmp_path):
    managed, models = container.get(DataManager), container.get(ModelManager)
    plain = managed.text_classification(texts, max_length=8, vocab_size=70)
    whole = managed.text_classification(
        DataConfig(source=texts, max_length=8),
        TokenizerConfig(vocab_size=70),
        ModelConfig(architecture="bert"),
    )
    assert plain is whole, "one entry of the cache"
    folder = tmp_path / "model"
    torch.manual_seed(1)
    small = {"hidden_size": 16, "num_hidden_layers": 1}
    models.save(
        models.sequence_classifier(architecture="bert", vocab_size=70, num_labels=3, **small),
        folder,
    )
    again = models.sequence_classifier(str(folder), num_labels=3)
    same = models.sequence_classifier(ModelConfig(id=str(folder)), num_labels=3)
    for one, other in zip(again.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda data, models: data.text_classification("x.csv", max_length=1), "max_length = 1: "),
        (
            lambda data, models: data.text_classification("x.csv", lenght=9),
            "lenght = 9: .*there are source, ",
        ),
        (
            lambda data, models: data.text_classification(DataConfig(source="x.csv"), max_length=9),
            r"max_length: beside a DataConfig; set it there, with DataConfig\(",
        ),
        (
            lambda data, models: data.text_classification("x.csv", vocab_size=1),
            "vocab_size = 1: ",
        ),
        (lambda data, models: models.sequence_classifier(num_labels=2), "either `id`"),
        (
            lambda data, models: models.sequence_classifier(architecture="bert"),
            "num_labels = 0: a classifier has .*; give labels= .* or num_labels=",
        ),
        (
            lambda data, models: models.sequence_classifier("a/b", labels=[]),
            "num_labels = 0: a classifier has ",
        ),
        (
            lambda data, models: models.sequence_classifier("a/b", architecture="bert"),
            "either `id`",
        ),
        (
            lambda data, models: models.sequence_classifier(architecture="bert", dtype="float16"),
            "float32",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_value(container, call, message):
    with pytest.raises(InvalidInputError, match=message):
        call(container.get(DataManager), container.get(ModelManager))
