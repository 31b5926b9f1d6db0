"""Copies to the device that a thread makes beside the computing, on a stream of their own.

Invariant: what was received is whole for all that the receiver does with it on its stream, and its
memory is not used again before that is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Copied:
    """Tensors on their way."""

    tensors: dict[str, torch.Tensor]
    done: torch.cuda.Event | None = None
    """When they are there; None where nothing is copied."""


class DeviceCopies:
    """Sends tensors in one thread, receives them in another; to the CPU, they are as they are.

    Args:
        device: Where to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        make: Callable[[torch.device], torch.cuda.Stream] = torch.cuda.Stream
        self._stream = make(device) if device.type == "cuda" else None

    def send(self, tensors: Tensors) -> Copied:
        """Begin to copy, from pinned memory, which torch keeps for the copies that follow."""
        if self._stream is None:
            return Copied(dict(tensors))
        with torch.cuda.stream(self._stream):
            moved = {
                name: tensor.pin_memory().to(self._device, non_blocking=True)
                for name, tensor in tensors.items()
            }
            return Copied(moved, self._stream.record_event())

    def receive(self, copied: Copied) -> dict[str, torch.Tensor]:
        """The tensors; the device waits for them, and this thread does not."""
        if copied.done is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied.done)
            for tensor in copied.tensors.values():
                tensor.record_stream(stream)
        return copied.tensors
