"""BatchManager: which rows make a batch, and how a batch becomes gradients when memory is short.

Invariant: the batches of an epoch follow from its number, the seed and the lengths alone, so that a
resumed training sees what an undisturbed one would have.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from workers.logs import get_logger
from workers.managers.base import BaseProcessManager
from workers.managers.batch_plan import (
    Batches,
    BatchPlan,
    ByRows,
    ByTokens,
    Lengths,
    held_out_batches,
)
from workers.managers.tensor import TensorManager
from workers.managers.tokenized import Batch

log = get_logger(__name__)

Loss = Callable[[Batch], torch.Tensor]

#: What the mean of a loss is over, in number.
Weight = Callable[[Batch], int | torch.Tensor]


def num_rows(batch: Batch) -> int:
    """The rows of a batch."""
    return len(batch["labels"])


class BatchManager(BaseProcessManager):
    """Plans batches, and runs them in as many passes as memory asks for."""

    def __init__(self, tensors: TensorManager) -> None:
        super().__init__()
        self._tensors = tensors

    def plan(self, lengths: Lengths, batch_size: int, batch_tokens: int | None = None) -> BatchPlan:
        """The batches of all epochs.

        Args:
            lengths: Tokens of each row, int64 [rows].
            batch_size: Rows a batch.
            batch_tokens: Tokens a batch, padding included, in place of `batch_size`.
        """
        if batch_tokens is None:
            return ByRows(lengths, batch_size)
        return ByTokens(lengths, batch_tokens)

    def training_batches(
        self, lengths: Lengths, batch_size: int, *, seed: int, epoch: int
    ) -> Batches:
        """The batches of one epoch: random, of rows of similar length.

        Args:
            lengths: Tokens of each row, int64 [rows].
            batch_size: Rows a batch; the last one made may be smaller.
            seed: The trial's.
            epoch: From 0.
        """
        return self.plan(lengths, batch_size).epoch(seed, epoch)

    def evaluation_batches(
        self, lengths: Lengths, batch_size: int, batch_tokens: int | None = None
    ) -> Batches:
        """All rows once, the longest first; by rows, or by tokens where those are given."""
        return held_out_batches(lengths, batch_size, batch_tokens)

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
        weight: Weight = num_rows,
    ) -> torch.Tensor:
        """Add the gradients of a batch's mean loss.

        Args:
            batch: Tensors of equal first dimension.
            loss: The mean loss of a micro-batch, a scalar with a graph.
            backward: Adds the gradients of a scalar.
            clear: Drops the gradients, before the batch is tried again in smaller pieces.
            weight: What `loss` is the mean over: micro-batches of which more counts weigh more.

        Returns:
            The batch's mean loss, a scalar without a graph.

        Raises:
            torch.OutOfMemoryError: Not even one row fits.
        """
        while True:
            try:
                return self._run(batch, loss, backward, weight)
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
        self, batch: Batch, loss: Loss, backward: Callable[[torch.Tensor], None], weight: Weight
    ) -> torch.Tensor:
        rows = len(batch["labels"])
        size = min(self._limit or rows, rows)
        if size == rows:
            value = loss(batch)
            backward(value)
            return value.detach()
        total, whole = torch.zeros((), device=batch["labels"].device), weight(batch)
        for start in range(0, rows, size):
            part = {name: tensor[start : start + size] for name, tensor in batch.items()}
            value = loss(part) * (weight(part) / whole)
            backward(value)
            total += value.detach()
        return total
