"""How a batch goes through a model in as many passes as memory asks for, and what is kept of that.

Invariant: what is remembered decides how a batch is cut, and nothing else. A batch of which memory
ran out is gone through again with the random numbers that it began with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch

from workers.logs import get_logger
from workers.managers.cuda import CUDAManager
from workers.managers.tensor import TensorManager
from workers.managers.tokenized import Batch
from workers.protocol.memory_errors import is_of_memory

log = get_logger(__name__)

T = TypeVar("T")

Loss = Callable[[Batch], torch.Tensor]
Backward = Callable[[torch.Tensor], None]

#: What the mean of a loss is over, in number.
Weight = Callable[[Batch], int | torch.Tensor]


def num_rows(batch: Batch) -> int:
    """The rows of a batch."""
    return len(batch["labels"])


class FittingRows:
    """The rows that went through at once where memory ran out of more, by their length.

    Lengths are told apart by powers of two. Longer rows go through in no larger numbers than
    shorter ones.
    """

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}

    def limit(self, length: int) -> int | None:
        """How many rows of a length may go through; None where nothing is known against any."""
        found = [rows for known, rows in self._rows.items() if known <= _band_of(length)]
        return min(found, default=None)

    def note(self, length: int, rows: int) -> None:
        """Memory runs out of more rows of such a length than these."""
        self.learn({_band_of(length): rows})

    def learn(self, known: Mapping[int, int]) -> None:
        """Take over what `known` told; of two limits, the lower one."""
        for length, rows in known.items():
            self._rows[length] = min(rows, self._rows.get(length, rows))

    def known(self) -> dict[int, int]:
        """The limits, by the lengths up to which they hold."""
        return dict(self._rows)


def _band_of(length: int) -> int:
    return 1 << max(0, length - 1).bit_length()


class Passes:
    """Takes batches through a model without gradients, in passes halved where memory runs out.

    Args:
        tensors: Frees memory.
        cuda: Has the generators from which a pass draws.
        asked: Rows a pass at most; None where whole batches are wanted.
        known: Rows that others like this one found to fit, by their length.
        remember: Told of a length, and of the rows that fit now.
    """

    def __init__(
        self,
        tensors: TensorManager,
        cuda: CUDAManager,
        asked: int | None = None,
        known: Mapping[int, int] | None = None,
        remember: Callable[[int, int], None] | None = None,
    ) -> None:
        self._tensors = tensors
        self._cuda = cuda
        self._asked = asked
        self._remember = remember
        self._fitting = FittingRows()
        self._fitting.learn(known or {})

    @property
    def micro_batch_size(self) -> int | None:
        """Rows a pass, of the longest rows so far; None as long as whole batches fit."""
        limits = [*self._fitting.known().values(), *([self._asked] if self._asked else [])]
        return min(limits, default=None)

    def each(self, batch: Batch, work: Callable[[Batch], T]) -> Iterator[T]:
        """What `work` makes of a batch, part by part.

        What went through is not gone through again.

        Args:
            batch: Tensors of equal first dimension.
            work: Of a batch or a part of one.

        Raises:
            torch.OutOfMemoryError: Not even one row fits.
        """
        start = 0
        while start < num_rows(batch):
            size = self._size_of(batch)
            part = _part(batch, start, size)
            try:
                made = work(part)
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not is_shortage(error):
                    raise
            else:
                yield made
                start += size
                continue
            self._halve(batch, size)

    def state_dict(self) -> dict[int, int]:
        """What was found to fit, so that a resumed training cuts its batches alike."""
        return self._fitting.known()

    def load_state_dict(self, state: Mapping[int, int]) -> None:
        """Know what `state_dict` told, too; it is of this trial, and perhaps of another device."""
        self._fitting.learn(state)

    def _size_of(self, batch: Batch) -> int:
        rows = num_rows(batch)
        limit = self._fitting.limit(_length_of(batch))
        return min(self._asked or rows, rows if limit is None else limit, rows)

    def _halve(self, batch: Batch, size: int) -> None:
        length = _length_of(batch)
        self._fitting.note(length, size // 2)
        if self._remember is not None:
            self._remember(length, size // 2)
        log.warning("out_of_memory", micro_batch_size=size // 2, tokens_a_text=length)
        self._tensors.clear_memory()


class Accumulator(Passes):
    """Turns batches into gradients, in passes halved where memory runs out."""

    def run(
        self,
        batch: Batch,
        loss: Loss,
        backward: Backward,
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
        drawn = self._cuda.rng_state()
        while True:
            size = self._size_of(batch)
            try:
                return _accumulate(batch, size, loss, backward, weight)
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not is_shortage(error):
                    raise
            # here: while the error is handled, its frames hold what is to be freed
            clear()
            self._halve(batch, size)
            self._cuda.set_rng_state(drawn)


def is_shortage(error: BaseException) -> bool:
    """Whether memory ran out, of the device or the host, as torch and its libraries tell it."""
    return isinstance(error, torch.OutOfMemoryError) or is_of_memory(error)


def _accumulate(
    batch: Batch, size: int, loss: Loss, backward: Backward, weight: Weight
) -> torch.Tensor:
    rows = num_rows(batch)
    if size == rows:
        value = loss(batch)
        backward(value)
        return value.detach()
    total, whole = torch.zeros((), device=batch["labels"].device), weight(batch)
    for start in range(0, rows, size):
        part = _part(batch, start, size)
        value = loss(part) * (weight(part) / whole)
        backward(value)
        total += value.detach()
    return total


def _part(batch: Batch, start: int, size: int) -> Batch:
    if start == 0 and size == num_rows(batch):
        return batch
    return {name: tensor[start : start + size] for name, tensor in batch.items()}


def _length_of(batch: Batch) -> int:
    """Tokens a row; 1 of what is no texts."""
    return int(batch["input_ids"].shape[1]) if "input_ids" in batch else 1
