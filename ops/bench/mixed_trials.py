"""Short trials of every task and of several architectures, one after the other in this process.

They go through the runner that a pool process has, from the claim to what is tidied up after.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import redis
import torch
import transformers

from workers.containers import Container
from workers.coordination.studies import Studies, ensure_epoch
from workers.managers import TokenizerManager
from workers.processes.registry import ProcessRecord
from workers.protocol.messages import RunTrial
from workers.protocol.spec import StudySpec
from workers.settings import Settings
from workers.trials.runner import TrialRunner

#: Which tag a word has; the others are `O`.
TAGS: Final = {"red": "B-COL", "green": "B-COL", "one": "B-NUM", "six": "B-NUM"}
WORDS: Final = (*TAGS, "blue", "house", "sea", "two")

#: The columns of the texts that each task reads.
COLUMNS: Final[Mapping[str, Mapping[str, str]]] = {
    "text_classification": {"label": "class"},
    "pairs": {"label": "class", "text_pair": "other"},
    "regression": {"label": "number"},
    "multi_label": {"label": "classes", "label_separator": "+"},
    "token_classification": {"text": "words", "label": "tags"},
    "causal_lm": {},
    "masked_lm": {},
}

#: Each kind of trial: its task, its architecture, and what else its study sets.
KINDS: Final[Mapping[str, tuple[str, str, Mapping[str, Any]]]] = {
    "classification": ("text_classification", "bert", {"save_model": "all"}),
    "pairs": ("pairs", "distilbert", {"objective": "best"}),
    "regression": ("regression", "distilbert", {"optimizer": "adafactor"}),
    "multi_label": ("multi_label", "bert", {"gradient_checkpointing": True}),
    "tags": ("token_classification", "t5", {"dropout": 0.1}),
    "causal": ("causal_lm", "gpt2", {"micro_batch_size": 4}),
    "masked": ("masked_lm", "bert", {"log_every_steps": 2}),
    "adapted_classification": ("text_classification", "bert", {"lora": {"r": 4}}),
    "adapted_tags": ("token_classification", "distilbert", {"lora": {"r": 2}}),
    "diverging": ("text_classification", "gpt2", {"learning_rate": 1e18, "max_grad_norm": None}),
}

#: A model as small as it is good for, and what its width and depth are multiplied by.
SHAPE: Final = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}

#: Fields that an architecture names otherwise, or needs beside.
FIELDS: Final[Mapping[str, Mapping[str, int]]] = {
    "bert": {"intermediate_size": 128},
    "distilbert": {"hidden_dim": 128},
    "t5": {"d_ff": 128, "d_kv": 16, "num_decoder_layers": 1},
}


class MixedTrials:
    """Runs one trial of each kind, again and again, each of other sizes.

    Args:
        runner: Of this process.
        client: The fleet's Redis.
        folder: Where texts and pretrained models lie.
        scale: How large models and texts become, at the most, as multiples of the smallest.
    """

    def __init__(
        self, runner: TrialRunner, client: redis.Redis, folder: Path, scale: int = 4
    ) -> None:
        self._runner = runner
        self._studies = Studies(client)
        self._folder = folder
        self._scale = scale
        self._names = list(KINDS)
        self._draw = random.Random(7)
        for name in self._names:
            self._studies.submit(self._spec(name))

    def run(self, number: int) -> str:
        """Run a trial, by its number from 0, and tell how it ended."""
        name, draw = self._names[number % len(self._names)], self._draw
        leases = self._studies.leases(name)
        times = draw.randint(1, self._scale)
        params: dict[str, Any] = {
            "batch_size": draw.choice([8, 12, 16]),
            "data.max_length": 8 * draw.randint(1, 2 * self._scale),
        }
        if KINDS[name][0] == "causal_lm" and number % 2:
            params["data.block_size"] = params.pop("data.max_length")
        if "lora" not in KINDS[name][2]:
            params["model.hidden_size"] = 32 * times
            params["model.num_hidden_layers"] = draw.randint(1, self._scale)
        leases.enqueue(number, params)
        self._runner.run(RunTrial(study=name, number=number, epoch=leases.epoch))
        record = leases.record(number)
        assert record is not None  # noqa: S101 - it was enqueued above
        return f"{record.state} {record.error or ''}".strip()

    def _spec(self, name: str) -> StudySpec:
        task, architecture, settings = KINDS[name]
        columns = COLUMNS[task]
        config: dict[str, Any] = {
            "task": "text_classification" if task == "pairs" else task,
            "data": {"source": str(self._folder / "texts.jsonl"), **columns},
            "tokenizer": {"vocab_size": 200},
            "model": {"architecture": architecture, **SHAPE, **FIELDS.get(architecture, {})},
            "epochs": 1,
            "checkpoint_every": {"steps": 3},
            "save_model": "none",
            **settings,
        }
        if "lora" in settings:
            config["model"], config["tokenizer"] = {"id": str(self._folder / architecture)}, {}
        return StudySpec(name=name, metric="loss", direction="minimize", config=config)


def write_texts(path: Path, count: int, longest: int) -> None:
    """Texts with whatever a task may learn of them."""
    draw = random.Random(0)
    rows = []
    for _ in range(count):
        words = draw.choices(WORDS, k=draw.randint(2, longest))
        rows.append(
            {
                "text": " ".join(words),
                "other": " ".join(draw.choices(WORDS, k=4)),
                "class": draw.choice(words[:2]),
                "number": f"{words.count('red') / len(words):.3f}",
                "classes": "+".join(sorted({*words} & {"red", "one", "six"})),
                "words": words,
                "tags": [TAGS.get(word, "O") for word in words],
            }
        )
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def write_base(folder: Path, architecture: str, tokenizers: TokenizerManager) -> None:
    """A pretrained model with its tokenizer, as far as this can be drawn."""
    tokenizer = tokenizers.load(tokenizers.train([" ".join(WORDS)], 80).path)
    config = transformers.AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        **SHAPE,
        **FIELDS.get(architecture, {}),
    )
    torch.manual_seed(3)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def mixed_trials(
    client: redis.Redis, settings: Settings, container: Container, folder: Path, **sizes: int
) -> Iterator[MixedTrials]:
    """Trials of a runner of this process, with all that they read.

    Args:
        client: The fleet's Redis.
        settings: With its address.
        container: The managers of this process.
        folder: Where texts and models are made.
        **sizes: `texts`, and `scale` as `MixedTrials` takes it.
    """
    ensure_epoch(client)
    scale = sizes.get("scale", 4)
    write_texts(folder / "texts.jsonl", sizes.get("texts", 64), longest=16 * scale)
    for _, architecture, config in KINDS.values():
        if "lora" in config:
            write_base(folder / architecture, architecture, container.get(TokenizerManager))
    runner = TrialRunner(
        client=client,
        redis_url=str(settings.redis_url),
        settings=settings,
        container=container,
        record=ProcessRecord(),
        drain_file=str(folder / "drain"),
    )
    with runner:
        yield MixedTrials(runner, client, folder, scale)
