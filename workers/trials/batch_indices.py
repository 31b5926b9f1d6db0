"""The indices of a loader's batches: from one on, each with seeds of its own, and summed up.

Invariant: what a sampler draws for batch `k` follows from the epoch and `k`, whoever asks when.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from workers.trials.step_seeds import Sown, StepSeeds

#: Indices that print alike in each process; a sampler's own objects may not.
_PRINTED: Final = {int, str, list, tuple}


class Indices:
    """What a DataLoader takes its batches' indices from; draws those of passed batches only.

    Args:
        inner: The loader's own sampler.
        seeds: Of the training.
        are_sent: Whether they go to loader processes, which are to be seeded for each batch.
    """

    def __init__(self, inner: Any, seeds: StepSeeds, *, are_sent: bool) -> None:
        self._inner = inner
        self._seeds = seeds
        self._are_sent = are_sent
        self._epoch, self._first = 0, 0
        #: over the indices before each batch, and with it, that was drawn and not noted as read
        self._sums: deque[tuple[int, int]] = deque()

    def begin(self, epoch: int, first: int) -> None:
        """Have the next iteration be that of an epoch, from a batch on."""
        self._epoch, self._first = epoch, first
        self._sums.clear()

    def take_sums(self) -> tuple[int, int]:
        """Sums over all indices before those of the batch that was read last, and with them."""
        return self._sums.popleft()

    def __len__(self) -> int:
        return len(self._inner)

    def __iter__(self) -> Iterator[Any]:
        epoch, first = self._epoch, self._first
        self._seeds.sow("order", epoch)
        drawn = iter(self._inner)
        total, number = 0, 0
        while True:
            self._seeds.sow("read", epoch, number)
            try:
                index = next(drawn)
            except StopIteration:
                return
            before, total = total, _add(total, index)
            if number >= first:
                self._sums.append((before, total))
                seed = self._seeds.of("read", epoch, number)
                yield Sown(seed, index) if self._are_sent else index
            number += 1

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._inner, name)


def _add(total: int, index: Any) -> int:
    """A sum over indices; those that print in no way that lasts do not count."""
    return zlib.crc32(repr(index).encode(), total) if type(index) in _PRINTED else total
