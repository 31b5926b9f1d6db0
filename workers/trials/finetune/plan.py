"""What a training goes through: how many steps, which batches, and when it is evaluated.

Invariant: the plan follows from the settings, the seed and the number of examples alone, so that a
resumed training goes on in the one that it began with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from workers.managers import BatchManager
from workers.managers.tokenized import TokenizedTexts
from workers.protocol.finetune import FinetuneConfig


class TrainingPlan:
    """The steps of one training.

    Args:
        batches: Plans the batches of an epoch.
        texts: What is trained on.
        config: The trial's settings.
        seed: The training's.
    """

    def __init__(
        self, batches: BatchManager, texts: TokenizedTexts, config: FinetuneConfig, *, seed: int
    ) -> None:
        self._batches = batches
        self._lengths = texts.lengths
        self._config = config
        self._seed = seed
        self._steps_per_epoch = math.ceil(len(texts) / config.batch_size)
        #: optimizer steps in all
        self.num_steps = self._steps_per_epoch * config.epochs
        self._evaluations = evaluation_steps(config, self._steps_per_epoch)

    def evaluation_at(self, number: int) -> int | None:
        """After which step an evaluation is due, by its number from 0; None after the last."""
        return self._evaluations[number] if number < len(self._evaluations) else None

    def from_step(self, step: int) -> RemainingBatches:
        """The batches after so many steps."""
        return RemainingBatches(self, step)

    def epochs_from(self, step: int) -> Iterator[list[list[int]]]:
        """The batches of each epoch that is left, planned when it begins."""
        first, offset = divmod(step, self._steps_per_epoch)
        for epoch in range(first, self._config.epochs):
            planned = self._batches.training_batches(
                self._lengths, self._config.batch_size, seed=self._seed, epoch=epoch
            )
            yield planned[offset if epoch == first else 0 :]


class RemainingBatches:
    """The batches of all epochs from a step on, as a `DataLoader` takes them."""

    def __init__(self, plan: TrainingPlan, start: int) -> None:
        self._plan = plan
        self._start = start

    def __len__(self) -> int:
        return self._plan.num_steps - self._start

    def __iter__(self) -> Iterator[list[int]]:
        for batches in self._plan.epochs_from(self._start):
            yield from batches


def evaluation_steps(config: FinetuneConfig, steps_per_epoch: int) -> list[int]:
    """After which steps to evaluate, ascending; the last step is one of them."""
    parts = min(config.evaluations_per_epoch, steps_per_epoch)
    return [
        epoch * steps_per_epoch + steps_per_epoch * part // parts
        for epoch in range(config.epochs)
        for part in range(1, parts + 1)
    ]
