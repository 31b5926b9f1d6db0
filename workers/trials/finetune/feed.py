"""The batches of a training's two sides, as the task puts rows into one, on the device.

Tokens are mapped already, so that a thread makes batches ahead for a GPU; processes do where the
study wants them. On the CPU each batch is made when it is wanted.

Invariant: what makes batches ends with the block that uses them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any, NamedTuple

import torch

from workers.managers.data import Examples
from workers.managers.device_copies import Copied, DeviceCopies
from workers.managers.prefetch import Prefetch
from workers.managers.tokenized import Batch, TokenizedTexts
from workers.protocol.finetune import FinetuneConfig
from workers.trials.finetune.needs import Managers
from workers.trials.finetune.plan import RemainingBatches
from workers.trials.finetune.tasks import Task

#: What the task makes of a batch, by its number from 0.
_Draw = Callable[[int, Batch], Batch]


class Fed(NamedTuple):
    """A batch, and what is known of it without a look at the device."""

    batch: Batch
    num_tokens: int
    """Without padding."""


class _Sent(NamedTuple):
    copied: Copied
    num_tokens: int


def is_made_ahead(device: torch.device) -> bool:
    """Whether a thread makes batches beside the computing.

    On the CPU it would take a core from torch, whose operations wait for the slowest of their own
    threads: a step would lose more than the thread saves.
    """
    return device.type != "cpu"


class Feed:
    """Batches on the device.

    Args:
        task: Says how rows become a batch.
        data: The two sides.
        config: The trial's settings.
        managers: Plan and load.
    """

    def __init__(
        self, task: Task, data: Examples, config: FinetuneConfig, managers: Managers
    ) -> None:
        self._task = task
        self._data = data
        self._config = config
        self._managers = managers
        self._pad_id = int(data.tokenizer.pad_token_id)
        self._device = managers.tensors.device
        self._copies = DeviceCopies(self._device, managers.tensors.clear_memory)

    def training(self, batches: RemainingBatches) -> AbstractContextManager[Iterator[Fed]]:
        """What is trained on, batch by batch."""

        def draw(number: int, batch: Batch) -> Batch:
            return self._task.drawn(batch, batches.seed, batches.first_step + number)

        return self._load(self._data.train, batches, self._config.loader_workers, draw)

    def evaluation(self) -> AbstractContextManager[Iterator[Fed]]:
        """What is held out, once."""
        texts = self._data.validation
        batches = self._managers.batches.evaluation_batches(
            texts.lengths, self._config.eval_batch_size, self._config.eval_batch_tokens
        )
        return self._load(texts, batches, 0, lambda _, batch: self._task.held_out(batch))

    @contextmanager
    def _load(
        self, texts: TokenizedTexts, batches: Any, num_workers: int, draw: _Draw
    ) -> Iterator[Iterator[Fed]]:
        def make() -> Generator[_Sent]:
            return self._sent(texts, batches, num_workers, draw)

        # that one of several processes died is told to this thread alone
        if num_workers or not is_made_ahead(self._device):
            with closing(make()) as sent:
                yield map(self._received, sent)
        else:
            with Prefetch(make) as ahead:
                yield map(self._received, ahead)

    def _sent(
        self, texts: TokenizedTexts, batches: Any, num_workers: int, draw: _Draw
    ) -> Generator[_Sent]:
        loader = self._managers.data.loader(
            texts,
            batches,
            pad_id=self._pad_id,
            num_workers=num_workers,
            collator=self._task.collator,
        )
        for number, batch in enumerate(loader):
            # by NumPy: torch would start threads to add for each thread that asks
            num_tokens = int(batch["attention_mask"].numpy().sum())
            yield _Sent(self._copies.send(draw(number, batch)), num_tokens)

    def _received(self, sent: _Sent) -> Fed:
        return Fed(self._copies.receive(sent.copied), sent.num_tokens)
