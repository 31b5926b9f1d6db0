"""The batches of a training's two sides, as the task puts rows into one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from workers.managers.data import Examples
from workers.managers.tokenized import Batch, TokenizedTexts
from workers.protocol.finetune import FinetuneConfig
from workers.trials.finetune.needs import Managers
from workers.trials.finetune.plan import RemainingBatches
from workers.trials.finetune.tasks import Task


class Feed:
    """Batches on the CPU.

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

    def training(self, batches: RemainingBatches) -> Iterator[Batch]:
        """What is trained on, batch by batch."""
        return self._load(self._data.train, batches, self._config.loader_workers)

    def evaluation(self) -> Iterator[Batch]:
        """What is held out, once."""
        texts = self._data.validation
        batches = self._managers.batches.evaluation_batches(
            texts.lengths, self._config.eval_batch_size, self._config.eval_batch_tokens
        )
        return self._load(texts, batches, 0)

    def _load(self, texts: TokenizedTexts, batches: Any, num_workers: int) -> Iterator[Batch]:
        loader = self._managers.data.loader(
            texts,
            batches,
            pad_id=self._pad_id,
            num_workers=num_workers,
            collator=self._task.collator,
        )
        yield from loader
