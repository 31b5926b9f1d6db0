"""TensorManager: moves tensors between CPU and device, frees memory, and finds what is not freed.

Invariant: what leaves for another process is on the CPU and shares nothing with the autograd graph.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from workers.managers.base import BaseProcessManager
from workers.managers.cuda import CUDAManager
from workers.managers.heap import Heap
from workers.managers.memory_use import MemoryUse

T = TypeVar("T")


@dataclass(slots=True)
class Leak:
    """What a block of code left behind; filled in when the block ends."""

    bytes: int = 0
    """Tensor memory held after the block beyond what was held before it."""
    tensors: list[str] = field(default_factory=list)
    """The tensors that came to stay, such as `float32[128, 4000] on cpu, 2048000 bytes`."""


class TensorManager(BaseProcessManager):
    """Places, moves and frees tensors."""

    def __init__(self, cuda: CUDAManager) -> None:
        super().__init__()
        self._cuda = cuda
        self._use = MemoryUse(lambda: cuda.holds_memory)
        self._heap = Heap()

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self._cuda.device

    def create(self, data: Any, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A tensor of `data` on the device."""
        return torch.as_tensor(data, dtype=dtype, device=self.device)

    def to_device(self, nested: T) -> T:
        """Move all tensors in dicts, lists and tuples to the device.

        To a GPU by way of pinned memory and without waiting, so that the copy overlaps computing.
        """
        if not self._cuda.is_cuda:
            return nested
        moved: T = _map(nested, self._stage)
        return moved

    def to_cpu(self, nested: T) -> T:
        """Copy all tensors in dicts, lists and tuples to the CPU, cut from their graph.

        Call it on all that is sent to another process or kept beyond a trial.
        """
        copied: T = _map(nested, lambda tensor: tensor.detach().to("cpu", copy=True))
        return copied

    def clear_memory(self) -> None:
        """Collect garbage, circular references included, and give cached GPU memory back."""
        gc.collect()
        if self._cuda.holds_memory:
            torch.cuda.empty_cache()

    def tidy(self) -> bool:
        """`clear_memory`, if what ran since it was last tidied used some; whether it did.

        Pinned memory that torch keeps for copies to come goes, too. What the C library keeps of
        freed memory goes if that is much, and takes little of the time; else it has to wait.
        """
        is_worth_it = self._use.is_worth_tidying()
        if is_worth_it:
            self.clear_memory()
            if self._cuda.holds_memory:
                _give_host_memory_back()
            self._use.note_tidied()
        if self.seconds_to_wait() == 0.0:
            self.give_freed_back()
        return is_worth_it

    def seconds_to_wait(self) -> float:
        """How long freed memory has to wait, 0 if it may go back now; infinite if it is little."""
        return self._heap.seconds_to_wait(self._use.rss)

    def give_freed_back(self) -> None:
        """Give the system what the C library keeps of freed memory, if it need not wait."""
        self._heap.give_back()
        self._use.note_given_back()

    @contextmanager
    def measure_leak(self) -> Iterator[Leak]:
        """Tell which tensors a block leaves alive, after a `clear_memory`."""
        self.clear_memory()
        before = _live_tensors()
        leak = Leak()
        try:
            yield leak
        finally:
            self.clear_memory()
            after = _live_tensors()
            for address in after.keys() - before.keys():
                size, text = after[address]
                leak.bytes += size
                leak.tensors.append(text)
            leak.tensors.sort()

    def _stage(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type == "cpu" and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


def _give_host_memory_back() -> None:
    give_back = getattr(torch.accelerator, "empty_host_cache", None)  # not in every torch
    if give_back is not None:
        give_back()


def _map(nested: Any, move: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(nested, torch.Tensor):
        return move(nested)
    if isinstance(nested, Mapping):
        return {key: _map(value, move) for key, value in nested.items()}
    if isinstance(nested, (list, tuple)):
        moved = [_map(value, move) for value in nested]
        return type(nested)(*moved) if hasattr(nested, "_fields") else type(nested)(moved)
    return nested


def _live_tensors() -> dict[int, tuple[int, str]]:
    """Every tensor that Python can reach: its id, its size in bytes, its description."""
    found = {}
    with warnings.catch_warnings():
        # looking at some objects' class wakes deprecated properties
        warnings.simplefilter("ignore")
        for each in gc.get_objects():
            if issubclass(type(each), torch.Tensor):
                size = each.numel() * each.element_size()
                dtype = str(each.dtype).removeprefix("torch.")
                text = f"{dtype}{list(each.shape)} on {each.device}, {size} bytes"
                found[id(each)] = (size, text)
    return found
