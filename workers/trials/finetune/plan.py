"""What a training goes through: how many steps, which batches, and when it is evaluated.

Invariant: the plan follows from the settings, the seed and the lengths of the examples alone, so
that a resumed training goes on in the one that it began with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from workers.managers import BatchManager
from workers.managers.tokenized import TokenizedTexts
from workers.protocol.finetune import FinetuneConfig
from workers.protocol.training_options import Every, TrainingOptions


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
        self._batches = batches.plan(texts.lengths, config.batch_size, config.batch_tokens)
        self.seed = seed
        self._steps_per_epoch = self._batches.num_batches
        #: optimizer steps in all
        self.num_steps = config.num_steps(self._steps_per_epoch)
        self._evaluations = evaluation_steps(config, self._steps_per_epoch)
        self._checkpoints = frozenset(
            steps_every(config.checkpoint_every, self._steps_per_epoch, self.num_steps)
        )

    def evaluation_at(self, number: int) -> int | None:
        """After which step an evaluation is due, by its number from 0; None after the last."""
        return self._evaluations[number] if number < len(self._evaluations) else None

    def has_checkpoint_at(self, step: int) -> bool:
        """Whether a checkpoint is due after a step by the number of steps."""
        return step in self._checkpoints

    def share(self, num_rows: int) -> float:
        """By what the mean loss of a batch of so many texts counts in its step."""
        return self._batches.share(num_rows)

    def from_step(self, step: int) -> RemainingBatches:
        """The batches after so many steps."""
        return RemainingBatches(self, step)

    def epochs_from(self, step: int) -> Iterator[list[list[int]]]:
        """The batches of each epoch that is left, planned when it begins."""
        for epoch in range(step // self._steps_per_epoch, self._num_epochs):
            planned = self._batches.epoch(self.seed, epoch)
            before = epoch * self._steps_per_epoch
            yield planned[max(0, step - before) : self.num_steps - before]

    @property
    def _num_epochs(self) -> int:
        """Passes that are begun."""
        return math.ceil(self.num_steps / self._steps_per_epoch)


class RemainingBatches:
    """The batches of all epochs from a step on, as a `DataLoader` takes them."""

    def __init__(self, plan: TrainingPlan, start: int) -> None:
        self._plan = plan
        self.first_step = start
        self.seed = plan.seed

    def __len__(self) -> int:
        return self._plan.num_steps - self.first_step

    def __iter__(self) -> Iterator[list[int]]:
        for batches in self._plan.epochs_from(self.first_step):
            yield from batches


def evaluation_steps(config: TrainingOptions, steps_per_epoch: int) -> list[int]:
    """After which steps to evaluate, ascending; the last step is one of them."""
    num_steps = config.num_steps(steps_per_epoch)
    if config.evaluate_every is not None:
        return [*steps_every(config.evaluate_every, steps_per_epoch, num_steps - 1), num_steps]
    parts = min(config.evaluations_per_epoch, steps_per_epoch)
    steps = (
        epoch * steps_per_epoch + steps_per_epoch * part // parts
        for epoch in range(math.ceil(num_steps / steps_per_epoch))
        for part in range(1, parts + 1)
    )
    return [*(step for step in steps if step < num_steps), num_steps]


def steps_every(every: Every | None, steps_per_epoch: int, last: int) -> list[int]:
    """The steps up to `last` that are so many apart, ascending; none where there is no rule."""
    if every is None:
        return []
    if every.steps is not None:
        return list(range(every.steps, last + 1, every.steps))
    apart = max(1.0, (every.epochs or 0.0) * steps_per_epoch)
    return [round(apart * number) for number in range(1, int(last / apart) + 1)]
