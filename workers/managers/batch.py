"""BatchManager: which rows make a batch, and how a batch becomes gradients when memory is short.

Invariant: the batches of an epoch follow from its number and the seed alone, so that a resumed
training sees what an undisturbed one would have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from workers.logs import get_logger
from workers.managers.base import BaseProcessManager
from workers.managers.tensor import TensorManager
from workers.managers.tokenized import Batch

log = get_logger(__name__)

#: Batches whose rows are sorted by length together: long enough to save padding, short enough to
#: stay random.
_BATCHES_A_BUCKET: Final = 50

Loss = Callable[[Batch], torch.Tensor]


class BatchManager(BaseProcessManager):
    """Plans batches, and runs them in as many passes as memory asks for."""

    def __init__(self, tensors: TensorManager) -> None:
        super().__init__()
        self._tensors = tensors

    def training_batches(
        self, lengths: npt.NDArray[np.int64], batch_size: int, *, seed: int, epoch: int
    ) -> list[list[int]]:
        """The batches of one epoch: random, of rows of similar length.

        Rows are shuffled, sorted by length within buckets of 50 batches, cut, and the batches
        shuffled again.

        Args:
            lengths: Tokens of each row, int64 [rows].
            batch_size: Rows a batch; the last one made may be smaller.
            seed: The trial's.
            epoch: From 0.
        """
        generator = np.random.default_rng([seed, epoch])
        order = generator.permutation(len(lengths))
        batches: list[list[int]] = []
        for start in range(0, len(order), batch_size * _BATCHES_A_BUCKET):
            bucket = order[start : start + batch_size * _BATCHES_A_BUCKET]
            bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
            batches += [
                bucket[first : first + batch_size].tolist()
                for first in range(0, len(bucket), batch_size)
            ]
        return [batches[index] for index in generator.permutation(len(batches))]

    def evaluation_batches(
        self, lengths: npt.NDArray[np.int64], batch_size: int
    ) -> list[list[int]]:
        """All rows once, the shortest first."""
        order = np.argsort(lengths, kind="stable")
        return [
            order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)
        ]

    def accumulator(self, micro_batch_size: int | None = None) -> Accumulator:
        """What turns the batches of one training into gradients."""
        return Accumulator(self._tensors, micro_batch_size)


class Accumulator:
    """Runs batches in micro-batches, halved for as long as the GPU's memory runs out.

    The size that fits is kept for the batches that follow.
    """

    def __init__(self, tensors: TensorManager, micro_batch_size: int | None) -> None:
        self._tensors = tensors
        self._limit = micro_batch_size

    @property
    def micro_batch_size(self) -> int | None:
        """Rows a pass, or None as long as whole batches fit."""
        return self._limit

    def run(
        self,
        batch: Batch,
        loss: Loss,
        backward: Callable[[torch.Tensor], None],
        clear: Callable[[], None],
    ) -> torch.Tensor:
        """Add the gradients of a batch's mean loss.

        Args:
            batch: Tensors of equal first dimension.
            loss: The mean loss of a micro-batch, a scalar with a graph.
            backward: Adds the gradients of a scalar.
            clear: Drops the gradients, before the batch is tried again in smaller pieces.

        Returns:
            The batch's mean loss, a scalar without a graph.

        Raises:
            torch.OutOfMemoryError: Not even one row fits.
        """
        while True:
            try:
                return self._run(batch, loss, backward)
            except torch.OutOfMemoryError:
                rows = len(batch["labels"])
                size = min(self._limit or rows, rows)
                if size == 1:
                    raise
            self._limit = size // 2
            log.warning("out_of_memory", micro_batch_size=self._limit)
            clear()
            self._tensors.clear_memory()

    def _run(
        self, batch: Batch, loss: Loss, backward: Callable[[torch.Tensor], None]
    ) -> torch.Tensor:
        rows = len(batch["labels"])
        size = min(self._limit or rows, rows)
        if size == rows:
            value = loss(batch)
            backward(value)
            return value.detach()
        total = torch.zeros((), device=batch["labels"].device)
        for start in range(0, rows, size):
            part = {name: tensor[start : start + size] for name, tensor in batch.items()}
            value = loss(part) * (len(part["labels"]) / rows)
            backward(value)
            total += value.detach()
        return total
