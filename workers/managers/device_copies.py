"""Copies to the device that a thread makes beside the computing, on a stream of their own.

Where memory runs out, the copy is left to who receives it, whose own thread can make room.

Invariant: what was received is whole for all that the receiver does with it on its stream, and its
memory is not used again before that is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from workers.managers.passes import is_shortage

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Copied:
    """Tensors on their way."""

    tensors: dict[str, torch.Tensor]
    done: torch.cuda.Event | None = None
    """When they are there; None where nothing is copied."""
    is_left: bool = False
    """Whether they are where they were, since memory ran out."""


class DeviceCopies:
    """Sends tensors in one thread, receives them in another; to the CPU, they are as they are.

    Args:
        device: Where to.
        make_room: Gives memory back that nothing uses.
    """

    def __init__(self, device: torch.device, make_room: Callable[[], None]) -> None:
        self._device = device
        self._make_room = make_room
        make: Callable[[torch.device], torch.cuda.Stream] = torch.cuda.Stream
        self._stream = make(device) if device.type == "cuda" else None

    def send(self, tensors: Tensors) -> Copied:
        """Begin to copy, from pinned memory, which torch keeps for the copies that follow."""
        try:
            return self._begin(tensors)
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_shortage(error):
                raise
            return Copied(dict(tensors), is_left=True)

    def receive(self, copied: Copied) -> dict[str, torch.Tensor]:
        """The tensors; the device waits for them, and this thread does not.

        Raises:
            torch.OutOfMemoryError: There is no room for them, though some was made.
        """
        if copied.is_left:
            self._make_room()
            return self._copy(copied.tensors)
        if copied.done is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied.done)
            for tensor in copied.tensors.values():
                tensor.record_stream(stream)
        return copied.tensors

    def _copy(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self._device) for name, tensor in tensors.items()}

    def _begin(self, tensors: Tensors) -> Copied:
        if self._stream is None:
            return Copied(dict(tensors))
        with torch.cuda.stream(self._stream):
            moved = {
                name: tensor.pin_memory().to(self._device, non_blocking=True)
                for name, tensor in tensors.items()
            }
            return Copied(moved, self._stream.record_event())
