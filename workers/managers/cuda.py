"""CUDAManager: the device of this process, what it can compute in, its seeds and its threads.

Invariant: a pool process sees one GPU at most (`CUDA_VISIBLE_DEVICES` was set before torch was
imported), so its device is `cuda:0` or the CPU; on the CPU although it was given a GPU, it says so.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from workers.logs import get_logger
from workers.managers.base import BaseProcessManager
from workers.processes.cores import count_cores
from workers.processes.gpus import visible_gpus
from workers.protocol.plain import describe_error
from workers.settings import Settings

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """The memory of a device, in bytes; all zero on the CPU."""

    allocated: int = 0
    """Held by tensors of this process."""
    reserved: int = 0
    """Held by this process's allocator."""
    free: int = 0
    """Free for any process."""
    total: int = 0


class CUDAManager(BaseProcessManager):
    """Device, precision, memory and seeds of this process."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._slots = settings.slots
        self._device: torch.device | None = None
        self._trouble: str | None = None
        self._choosing = threading.Lock()

    @property
    def device(self) -> torch.device:
        """Where this process computes; chosen, and CUDA started, when it is first asked for."""
        return self._chosen()

    @property
    def trouble(self) -> str | None:
        """Why this process's GPU cannot be used, once that is known; what ran on it is lost."""
        self._chosen()
        return self._trouble

    def _chosen(self) -> torch.device:
        if self._device is None:
            with self._choosing:
                if self._device is None:
                    self._device = self._choose()
        return self._device

    def _choose(self) -> torch.device:
        """The GPU; or the CPU, its cores shared with the other slots."""
        if self.is_available():
            device = torch.device("cuda", 0)
            with self._noting_trouble():
                torch.cuda.set_device(device)
            return device
        if not torch.cuda._is_in_bad_fork() and visible_gpus():
            self._trouble = (
                f"CUDA does not work here: torch {torch.__version__} finds no GPU, and the host"
                f" shows {', '.join(map(str, visible_gpus()))} (look at nvidia-smi and the driver's"
                " version; CUDA_VISIBLE_DEVICES= runs it on the CPU)"
            )
            log.warning("cuda_unusable", reason=self._trouble)
        if self._slots is not None:
            torch.set_num_threads(max(1, count_cores() // self._slots))
        return torch.device("cpu")

    @property
    def is_cuda(self) -> bool:
        """Whether this process computes on a GPU."""
        return self.device.type == "cuda"

    @property
    def holds_memory(self) -> bool:
        """Whether this process computes on a GPU that works, as far as it was asked for yet."""
        chosen = self._device
        return chosen is not None and chosen.type == "cuda" and self._trouble is None

    @property
    def num_threads(self) -> int:
        """Threads that torch computes with on the CPU."""
        return torch.get_num_threads()

    def is_available(self) -> bool:
        """Whether this process can use CUDA: there is a GPU, and no fork stands in between."""
        if torch.cuda._is_in_bad_fork():
            log.warning("cuda_after_fork", hint="start processes by spawn; this one uses the CPU")
            return False
        return torch.cuda.is_available()

    def check(self) -> str | None:
        """Run a tiny kernel on the GPU, if this process has one; why it cannot be used, or None.

        An error of CUDA's own lasts: no later call in this process works.
        """
        if self.is_cuda and self.trouble is None:
            with self._noting_trouble():
                torch.ones(8, device=self.device).sum().item()
        return self.trouble

    @contextmanager
    def _noting_trouble(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError:
            pass  # whose memory it is, is another question
        except RuntimeError as error:
            self._trouble = f"CUDA does not work here: {describe_error(error, 500)}"

    def note_broken(self, reason: str) -> None:
        """Note that a CUDA error left this process's GPU unusable: nothing is to touch it."""
        if self.is_cuda and self.trouble is None:
            self._trouble = reason

    def supports_bf16(self) -> bool:
        """Whether the GPU computes in bfloat16 by itself."""
        return self.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)

    def supports_tf32(self) -> bool:
        """Whether the GPU has TensorFloat-32 (compute capability 8.0 and later)."""
        return self.is_cuda and torch.cuda.get_device_capability(self.device) >= (8, 0)

    def memory(self) -> DeviceMemory:
        """The device's memory now."""
        if not self.is_cuda:
            return DeviceMemory()
        free, total = torch.cuda.mem_get_info(self.device)
        return DeviceMemory(
            torch.cuda.memory_allocated(self.device),
            torch.cuda.memory_reserved(self.device),
            free,
            total,
        )

    def seed(self, seed: int) -> None:
        """Seed Python, NumPy and torch, on the CPU and on this process's GPU, Apple's too.

        Args:
            seed: In [0, 2**32).
        """
        random.seed(seed)
        np.random.seed(seed)
        # not `torch.manual_seed`: it notes a traceback for each kind of device that is not there
        torch.default_generator.manual_seed(seed)
        if self.is_cuda:
            torch.cuda.manual_seed(seed)
        elif torch.backends.mps.is_available():  # which an objective may compute on by itself
            torch.mps.manual_seed(seed)

    def rng_state(self) -> dict[str, torch.Tensor]:
        """The states of torch's generators, as `uint8` tensors on the CPU."""
        state = {"cpu": torch.get_rng_state()}
        if self.is_cuda:
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def set_rng_state(self, state: dict[str, torch.Tensor]) -> None:
        """Go on where `rng_state` was taken."""
        torch.set_rng_state(state["cpu"])
        if self.is_cuda and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self.device)
