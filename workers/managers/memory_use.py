"""Whether this process used memory, or left files open, since it was last tidied: cheap to ask.

Collecting all garbage takes as long as many a short trial.

Invariant: what lives on in circular references is collected before it holds more than a mark of
memory or some ten thousands of objects, and at once where it holds files or memory of a GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import psutil
import torch

#: How much a process may grow before it is worth looking for what can go.
_GROWTH_BYTES: Final = 64 << 20

#: How many collections of the young move what was made before them out of sight: each comes with
#: some 7,000 more objects, and of short trials one with every fifth or so.
_COLLECTIONS: Final = 3

#: What holds memory that neither Python's collector nor its counters see.
_TORCH: Final = (torch.Tensor, torch.nn.Module, torch.optim.Optimizer)


@dataclass(frozen=True)
class _Seen:
    """What a process held when it was tidied."""

    rss: int
    num_files: int
    num_collections: int
    num_device_allocations: int


class MemoryUse:
    """Tells whether there may be something to tidy.

    Args:
        has_device: Whether this process computes on a GPU that works.
    """

    def __init__(self, has_device: Callable[[], bool]) -> None:
        self._has_device = has_device
        self._process = psutil.Process()
        self._latest = self._seen = self._look()

    @property
    def rss(self) -> int:
        """The memory that this process held when that was last looked at, in bytes."""
        return self._latest.rss

    def note_tidied(self) -> None:
        """Take what is held now for what there has to be."""
        self._latest = self._seen = self._look()

    def note_given_back(self) -> None:
        """Look at the memory again: some of it may have gone back to the system."""
        rss = self._process.memory_info().rss
        self._latest = replace(self._latest, rss=rss)
        self._seen = replace(self._seen, rss=min(self._seen.rss, rss))

    def is_worth_tidying(self) -> bool:
        """Whether tensors were made, files left open, or much was allocated since."""
        seen, now = self._seen, self._look()
        self._latest = now
        return (
            now.rss - seen.rss > _GROWTH_BYTES
            or now.num_files > seen.num_files
            or now.num_device_allocations != seen.num_device_allocations
            or now.num_collections - seen.num_collections >= _COLLECTIONS
            or _has_young_tensors()
        )

    def _look(self) -> _Seen:
        allocations = 0
        if self._has_device():
            allocations = torch.cuda.memory_stats().get("allocation.all.allocated", 0)
        return _Seen(
            rss=self._process.memory_info().rss,
            num_files=self._process.num_fds(),
            num_collections=gc.get_stats()[1]["collections"],
            num_device_allocations=allocations,
        )


def _has_young_tensors() -> bool:
    """Whether something of torch's is among the objects made since the last collection."""
    kinds = {type(each) for generation in (0, 1) for each in gc.get_objects(generation)}
    return any(issubclass(kind, _TORCH) for kind in kinds)
