"""What `finetune` learns of the words of a text."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from desk import run, study_of, value_after_a_loss
from structlog.testing import capture_logs
from transformers import AutoModelForTokenClassification, AutoTokenizer

from workers.managers import BatchManager, ModelManager
from workers.managers.entities import scores
from workers.managers.token_rows import Rows
from workers.protocol.errors import UnfitStudyError
from workers.protocol.finetune import FinetuneConfig
from workers.protocol.tasks import TASKS
from workers.texts.split import check_rows
from workers.trials.finetune.tasks import make_task

TAGS = {"red": "B-COL", "green": "B-COL", "dark": "B-COL", "one": "B-NUM", "six": "B-NUM"}


def sentence(number):
    draw = random.Random(number)
    words = draw.choices(["red", "green", "one", "six", "house", "sea"], k=draw.randrange(2, 8))
    if number % 3 == 0:
        words += ["dark", "red"]
    tags = [TAGS.get(word, "O") for word in words]
    for at in range(1, len(words)):
        if words[at - 1] == "dark":
            tags[at] = "I-COL"
    return words, tags


@pytest.fixture
def texts(tmp_path):
    paths = tmp_path / "train.jsonl", tmp_path / "held_out.jsonl"
    for path, numbers in zip(paths, (range(96), range(1000, 1020)), strict=True):
        rows = [dict(zip(("words", "tags"), sentence(number), strict=True)) for number in numbers]
        path.write_text("\n".join(map(json.dumps, rows)))
    return paths


def tag_study(texts, **config):
    study = study_of(
        texts[0], task="token_classification", epochs=3, batch_size=8, learning_rate=2e-2, **config
    )
    study["config"]["data"] = {
        "source": str(texts[0]),
        "validation": str(texts[1]),
        "text": "words",
        "label": "tags",
        "max_length": 16,
    }
    study["config"] |= {"eval_batch_size": 7, "checkpoint_every": {"steps": 2}}
    return {**study, "metric": "f1"}


def test_entities_are_learned_resumed_to_the_bit_and_scored_as_a_plain_loop_does(
    desk, container, texts
):
    place = desk(**tag_study(texts))
    trial = place.claim(0)
    whole = run(container, trial)
    assert whole["f1"] > 0.5, whole
    folder = trial.result_directory / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    assert set(model.config.id2label.values()) == {"B-COL", "I-COL", "B-NUM", "O"}
    pairs, losses = [], []
    for line in texts[1].read_text().splitlines():
        row = json.loads(line)
        encoded = tokenizer(row["words"], is_split_into_words=True, return_tensors="pt")
        words = encoded.word_ids()
        with torch.inference_mode():
            logits = model(input_ids=encoded["input_ids"]).logits[0].double()
        firsts = [words.index(number) for number in range(len(row["words"]))]
        found = [model.config.id2label[int(logits[at].argmax())] for at in firsts]
        pairs.append((found, row["tags"]))
        wanted = [model.config.label2id[tag] for tag in row["tags"]]
        losses += [
            -float(logits[at].log_softmax(-1)[n]) for at, n in zip(firsts, wanted, strict=True)
        ]
    hits = [one == other for pair in pairs for one, other in zip(*pair, strict=True)]
    independent = {**scores(pairs), "accuracy": np.mean(hits), "loss": np.mean(losses)}
    assert whole == pytest.approx(independent, rel=1e-6)
    assert value_after_a_loss(container, place) == whole

    study = tag_study(texts, model={"id": str(folder)})
    study["config"] |= {"tokenizer": {}, "learning_rate": 1e-9, "epochs": 1, "max_steps": 2}
    kept = run(container, desk(**study).claim(2))
    assert kept["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    loaded = container.get(ModelManager).load(folder)
    assert type(loaded).__name__ == "BertForTokenClassification"


def test_the_gradient_of_a_step_is_that_of_its_words_however_it_is_cut(container):
    task = make_task(FinetuneConfig(task="token_classification"))
    draw = np.random.default_rng(3)
    rows = []
    for length in (7, 1, 3, 9, 2):
        labels = draw.choice([-100, 0, 1, 2], length).astype(np.int32)
        rows.append((np.arange(length, dtype=np.int32), labels))
    rows[1][1][:] = -100  # a text without a word
    batch = task.collator(0, 8)(Rows.of(rows))
    assert batch["labels"].shape == (5, 16)
    weight = torch.nn.Parameter(torch.randn(10, 3, dtype=torch.float64))
    found = []
    for rows_a_pass in (None, 1, 2, 4):
        weight.grad = None
        container.get(BatchManager).accumulator(rows_a_pass).run(
            batch,
            lambda part: task.loss(weight[part["input_ids"]], part),
            torch.Tensor.backward,
            lambda: None,
            task.weight,
        )
        found.append(weight.grad)
    ids, labels = (np.concatenate([row[at] for row in rows]) for at in (0, 1))
    learned = labels != -100
    weight.grad = None
    torch.nn.functional.cross_entropy(
        weight[torch.from_numpy(ids[learned]).long()], torch.from_numpy(labels[learned]).long()
    ).backward()
    for each in found:
        torch.testing.assert_close(each, weight.grad, rtol=1e-6, atol=1e-9)


def test_a_held_out_side_without_an_entity_ends_a_study_of_f1_and_leaves_one_of_accuracy(
    desk, container, texts
):
    rows = [{"words": ["house", "sea"], "tags": ["O", "O"]}, {"words": ["sea"], "tags": ["O"]}]
    texts[1].write_text("\n".join(map(json.dumps, rows)))
    study = tag_study(texts)
    study["config"] |= {"epochs": 1, "max_steps": 1}
    with pytest.raises(UnfitStudyError, match="'f1' cannot be measured: no held-out word is of an"):
        run(container, desk(**study).claim(0))
    values = run(container, desk(**{**study, "metric": "accuracy"}).claim(1))
    assert set(TASKS["token_classification"].metrics) - set(values) == {"f1", "precision", "recall"}
    told = []
    config = FinetuneConfig(**study["config"]).data
    held_out = check_rows(config, "data", tell=told.append).held_out
    assert "no held-out word is of an entity: f1, precision, recall cannot be measured" in told[-1]
    assert held_out.problem(["f1"], "token_classification") is not None


def test_words_that_are_cut_off_are_told(container, texts, desk):
    study = tag_study(texts)
    study["config"]["data"]["max_length"] = 4
    study["config"] |= {"epochs": 1, "max_steps": 1}
    with capture_logs() as logs:
        run(container, desk(**study).claim(3))
    found = [each["finding"] for each in logs if each["event"] == "data_finding"]
    assert any(
        each.startswith("train: ") and "neither learned nor measured" in each for each in found
    )
    assert any(each.startswith("validation: ") for each in found)
