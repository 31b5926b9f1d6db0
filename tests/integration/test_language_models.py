"""What `finetune` learns from texts without labels."""

from __future__ import annotations

import itertools
import json
import math
import random

import pytest
import torch
from desk import StepTrial, run, study_of
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from workers.managers import BatchManager, ModelManager
from workers.managers.token_rows import Rows
from workers.protocol.errors import DrainRequested
from workers.protocol.finetune import FinetuneConfig
from workers.trials.finetune.tasks import make_task

GPT2 = {"architecture": "gpt2", "hidden_size": 32, "num_hidden_layers": 2}


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
    for path, numbers in zip(paths, (range(100), range(1000, 1030)), strict=True):
        lines = [json.dumps({"text": sentence(number)}) for number in numbers]
        path.write_text("\n".join(lines))
    return paths


def lm_study(texts, task="causal_lm", model=GPT2, data=None, **config):
    config = {"epochs": 2, "batch_size": 8, "eval_batch_size": 7, "learning_rate": 1e-2, **config}
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
    assert whole["perplexity"] < len(tokenizer) / 2

    again = place.claim(1)
    again.seed = place.spec.trial_seed(0)  # as if it were the same trial
    with pytest.raises(DrainRequested):
        run(container, StepTrial(again, 3, place.drain.set))
    place.drain.clear()
    assert place.leases.release(1, place.held.token)
    torch.manual_seed(999)  # whatever ran in between
    resumed = place.claim(1)
    resumed.seed = place.spec.trial_seed(0)
    assert run(container, resumed) == whole


def test_a_saved_causal_model_goes_on_where_it_was_and_a_headless_one_gets_a_head(
    desk, container, texts
):
    first = desk(**lm_study(texts)).claim(0)
    values = run(container, first)
    saved = first.result_directory / "model"
    study = lm_study(texts, model={"id": str(saved)}, learning_rate=1e-9, max_steps=2)
    study["config"] |= {"tokenizer": {}}
    assert run(container, desk(**study).claim(1))["loss"] == pytest.approx(values["loss"], rel=1e-5)
    model = container.get(ModelManager).load(saved)
    assert type(model).__name__ == "GPT2LMHeadModel"
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
