"""What `finetune` learns from texts without labels."""

from __future__ import annotations

import itertools
import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from desk import run, study_of, value_after_a_loss
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from workers.managers import BatchManager, ModelManager, TokenizerManager
from workers.managers.token_rows import Rows
from workers.protocol.finetune import FinetuneConfig
from workers.trials.finetune.tasks import make_task

GPT2 = {"architecture": "gpt2", "hidden_size": 32, "num_hidden_layers": 2}
BERT = {"architecture": "bert", "hidden_size": 32, "num_hidden_layers": 1}


def sentence(number):
    """Words of which the next can be told from the one before."""
    draw = random.Random(number)
    at = draw.randrange(6)
    words = ["red", "green", "blue", "one", "two", "six"]
    return " ".join(words[(at + place) % 6] for place in range(draw.randrange(1, 12)))


@pytest.fixture
def texts(tmp_path):
    """Texts to train on and held-out ones, without labels."""
    paths = tmp_path / "train.jsonl", tmp_path / "held_out.jsonl"
    for path, numbers in zip(paths, (range(64), range(1000, 1020)), strict=True):
        lines = [json.dumps({"text": sentence(number)}) for number in numbers]
        path.write_text("\n".join(lines))
    return paths


def lm_study(texts, task="causal_lm", model=GPT2, data=None, **config):
    config = {"checkpoint_every": {"steps": 2}, **config}
    config = {"epochs": 1, "batch_size": 8, "eval_batch_size": 7, "learning_rate": 1e-2, **config}
    study = study_of(texts[0], task=task, model=model, **config)
    study["config"]["data"] = {
        "source": str(texts[0]),
        "validation": str(texts[1]),
        **({"max_length": 10} if data is None else data),
    }
    return {**study, "metric": "perplexity", "direction": "minimize"}


def texts_in(path):
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def tokens_of(tokenizer, path):
    """The ids of each text as the task has them, not cut."""
    return [tokenizer(text)["input_ids"] for text in texts_in(path)]


def pieces_of(texts, block_size):
    """The parts of texts that lie in one block, one by one."""
    found, free = [], block_size
    for text in texts:
        left = text
        while left:
            found.append(left[:free])
            left, free = left[free:], free - len(found[-1])
            free = free or block_size
    return found


def blocks_of(texts, block_size):
    stream = [token for text in texts for token in text]
    return [stream[start : start + block_size] for start in range(0, len(stream), block_size)]


def plain_perplexity(model, rows):
    """Row by row, and token by token."""
    total, count = 0.0, 0
    for row in rows:
        if len(row) < 2:
            continue
        with torch.inference_mode():
            scores = model(torch.tensor([row])).logits[0].double().log_softmax(-1)
        total -= sum(float(scores[at, token]) for at, token in enumerate(row[1:]))
        count += len(row) - 1
    return math.exp(total / count)


def loss_of_saved(desk, container, texts, task, folder):
    """What a saved model measures that is trained on by two steps of next to nothing."""
    study = lm_study(texts, task=task, model={"id": str(folder)}, learning_rate=1e-9, max_steps=2)
    study["config"] |= {"tokenizer": {}}
    return run(container, desk(**study).claim(2))["loss"]


CAUSAL = [
    ({"max_length": 10}, lambda texts: [text[:10] for text in texts]),
    ({"block_size": 16}, lambda texts: pieces_of(texts, 16)),
    ({"block_size": 16, "across_texts": True}, lambda texts: blocks_of(texts, 16)),
]


@pytest.mark.parametrize(("data", "rows_of"), CAUSAL, ids=["texts", "apart", "across"])
def test_a_causal_model_is_learned_resumed_to_the_bit_and_measured_as_a_plain_loop_does(
    desk, container, texts, data, rows_of
):
    place = desk(**lm_study(texts, data=data))
    trial = place.claim(0)
    whole = run(container, trial)
    assert whole["perplexity"] == pytest.approx(math.exp(whole["loss"]))
    folder = trial.result_directory / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    if "block_size" in data:
        rows = rows_of(tokens_of(tokenizer, texts[1]))
    else:
        rows = [
            tokenizer(text, truncation=True, max_length=10)["input_ids"]
            for text in texts_in(texts[1])
        ]
    assert whole["perplexity"] == pytest.approx(plain_perplexity(model, rows), rel=1e-6)
    assert whole["perplexity"] < len(tokenizer)

    assert value_after_a_loss(container, place) == whole
    if "block_size" not in data:
        again = loss_of_saved(desk, container, texts, "causal_lm", folder)
        assert again == pytest.approx(whole["loss"], rel=1e-5)
        model = container.get(ModelManager).load(folder)
        assert model.lm_head.weight is model.transformer.wte.weight


@pytest.mark.parametrize("data", [{"max_length": 10}, {"block_size": 8}])
def test_the_gradient_of_a_step_is_that_of_its_batch_however_it_is_cut(container, texts, data):
    config = FinetuneConfig(
        task="causal_lm", model=GPT2, data=data, label_smoothing=0.1, batch_size=6
    )
    task = make_task(config)
    rows = [[1, 2, 3, 4, 5, 6, 7, 8], [3], [5, 5], [], [9, 1, 2], [4, 4, 4, 1, 7]]
    rows = [row or [2] for row in rows]
    ids = [token for row in rows for token in row]
    taken = Rows.of([(torch.tensor(row).int().numpy(), 0) for row in rows])
    batch = task.collator(0, 1)(taken)
    assert batch["input_ids"].shape == (6, 8)
    assert len(ids) == int(batch["attention_mask"].sum())
    torch.manual_seed(3)
    weight = torch.nn.Parameter(torch.randn(10, 10, dtype=torch.float64))

    def gradient(rows_a_pass):
        weight.grad = None
        value = (
            container.get(BatchManager)
            .accumulator(rows_a_pass)
            .run(
                batch,
                lambda part: task.loss(weight[part["input_ids"]], part),
                torch.Tensor.backward,
                lambda: None,
                task.weight,
            )
        )
        return weight.grad, value.double()

    # the mean over all tokens of the batch that are predicted, one by one
    weight.grad = None
    losses = [
        functional.cross_entropy(weight[before][None], torch.tensor([token]), label_smoothing=0.1)
        for row in rows
        for before, token in itertools.pairwise(row)
    ]
    torch.stack(losses).mean().backward()
    wanted = weight.grad
    for rows_a_pass in (None, 1, 2, 4, 5):
        found, _ = gradient(rows_a_pass)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


def masked_task(container, **config):
    """A task with a tokenizer of 100 words, and the ids of 40 texts of them."""
    words = [f"w{number}" for number in range(100)]
    tokenizers = container.get(TokenizerManager)
    tokenizer = tokenizers.load(tokenizers.train(words, 400).path)
    task = make_task(FinetuneConfig(task="masked_lm", model=BERT, **config))
    task.build_model(container.get(ModelManager), SimpleNamespace(tokenizer=tokenizer))
    draw = random.Random(1)
    texts = [" ".join(draw.choices(words, k=draw.randrange(1, 40))) for _ in range(40)]
    rows = [(np.array(tokenizer(text)["input_ids"], dtype=np.int32), 0) for text in texts]
    return task, tokenizer, rows


def test_tokens_are_hidden_as_devlin_et_al_do_by_the_seed_and_the_step_alone(container):
    task, tokenizer, rows = masked_task(container, mask_fraction=0.3)
    batch = task.collator(tokenizer.pad_token_id, 1)(Rows.of(rows))
    ids, special = batch["input_ids"], torch.tensor(tokenizer.all_special_ids)
    kinds = torch.zeros(3)
    for step in range(60):
        hidden = task.drawn(batch, 7, step)
        labels, given = hidden["labels"], hidden["input_ids"]
        is_hidden = labels != -100
        assert not torch.isin(ids[is_hidden], special).any()
        assert torch.equal(labels[is_hidden], ids[is_hidden])
        assert torch.equal(given[~is_hidden], ids[~is_hidden])
        words = (batch["attention_mask"] == 1) & ~torch.isin(ids, special)
        share = (words.sum(1).double() * 0.3).round().clamp(min=1)
        assert torch.equal(is_hidden.sum(1).double(), share)
        is_mask, is_same = given == tokenizer.mask_token_id, given == ids
        assert not (torch.isin(given, special) & is_hidden & ~is_mask).any()
        found = is_hidden & is_mask, is_hidden & ~is_mask & ~is_same, is_hidden & is_same
        kinds += torch.stack([each.sum() for each in found])
    masked, other, same = (kinds / kinds.sum()).tolist()
    assert (masked, other, same) == pytest.approx((0.8, 0.1, 0.1), abs=0.015)
    once, again, later, elsewhere = (
        task.drawn(batch, *at)["labels"] for at in ((7, 3), (7, 3), (7, 4), (8, 3))
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, later)
    assert not torch.equal(once, elsewhere)


def test_held_out_tokens_are_hidden_alike_whatever_batch_and_trial_they_are_in(container):
    task, tokenizer, rows = masked_task(container)
    collate = task.collator(tokenizer.pad_token_id, 1)
    whole = task.held_out(collate(Rows.of(rows)))
    for number, row in enumerate(rows):
        alone = task.held_out(collate(Rows.of([row])))
        for name, tensor in alone.items():
            assert torch.equal(tensor[0], whole[name][number, : len(row[0])])


def test_a_masked_model_is_learned_resumed_to_the_bit_and_measured_as_a_plain_loop_does(
    desk, container, texts
):
    place = desk(**lm_study(texts, task="masked_lm", model=BERT, learning_rate=5e-3))
    trial = place.claim(0)
    whole = run(container, trial)
    folder = trial.result_directory / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    task = make_task(FinetuneConfig.model_validate(place.spec.config))
    task.build_model(container.get(ModelManager), SimpleNamespace(tokenizer=tokenizer))
    total, count = 0.0, 0
    for text in texts_in(texts[1]):
        ids = np.array(tokenizer(text, truncation=True, max_length=10)["input_ids"], np.int32)
        row = task.held_out(task.collator(0, 1)(Rows.of([(ids, 0)])))
        with torch.inference_mode():
            scores = model(row["input_ids"]).logits[0].double().log_softmax(-1)
        for at, token in enumerate(row["labels"][0].tolist()):
            if token != -100:
                total, count = total - float(scores[at, token]), count + 1
    assert whole["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-6)
    assert whole["perplexity"] < len(tokenizer)
    assert value_after_a_loss(container, place) == whole

    again = loss_of_saved(desk, container, texts, "masked_lm", folder)
    assert again == pytest.approx(whole["loss"], rel=1e-5)
    assert type(container.get(ModelManager).load(folder)).__name__ == "BertForMaskedLM"
