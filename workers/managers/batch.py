"""BatchManager: which rows make a batch, and how a batch becomes gradients when memory is short.

Invariant: the batches of an epoch follow from its number, the seed and the lengths alone, so that a
resumed training sees what an undisturbed one would have.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

from workers.managers.base import BaseProcessManager
from workers.managers.batch_plan import (
    Batches,
    BatchPlan,
    ByRows,
    ByTokens,
    Lengths,
    held_out_batches,
)
from workers.managers.cuda import CUDAManager
from workers.managers.passes import Accumulator, FittingRows, Passes
from workers.managers.tensor import TensorManager


class BatchManager(BaseProcessManager):
    """Plans batches, and runs them in as many passes as memory asks for."""

    def __init__(self, tensors: TensorManager, cuda: CUDAManager) -> None:
        super().__init__()
        self._tensors = tensors
        self._cuda = cuda
        self._fitting: dict[Hashable, FittingRows] = {}

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

    def accumulator(
        self, micro_batch_size: int | None = None, model: Hashable = None
    ) -> Accumulator:
        """What turns the batches of one training into gradients.

        Args:
            micro_batch_size: Rows a pass at most.
            model: What the memory that a pass takes follows from, beside its rows and their length.
                What fits is remembered in this process for others with an equal one.
        """
        known, remember = self._memory_of(("gradients", model))
        return Accumulator(self._tensors, self._cuda, micro_batch_size, known, remember)

    def passes(self, model: Hashable = None) -> Passes:
        """What takes the batches of an evaluation through a model; `model` as of `accumulator`."""
        known, remember = self._memory_of(("evaluation", model))
        return Passes(self._tensors, self._cuda, None, known, remember)

    def _memory_of(
        self, key: tuple[str, Hashable]
    ) -> tuple[Mapping[int, int], Callable[[int, int], None] | None]:
        """What is known of a model, and how to have more of it known."""
        if key[1] is None:
            return {}, None

        def remember(length: int, rows: int) -> None:
            self._fitting.setdefault(key, FittingRows()).note(length, rows)

        return self._fitting.get(key, FittingRows()).known(), remember
