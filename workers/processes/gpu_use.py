"""How much of their GPUs' memory and time is in use, as NVML tells it.

Invariant: a GPU that does not answer, or does not tell something, is left out, and no error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

import pynvml

from workers.processes.gpus import Gpu


class GpuUse(NamedTuple):
    """One GPU, or one MIG instance, at one moment."""

    uuid: str
    used_bytes: int
    total_bytes: int
    utilisation: float | None
    """The share of the last moments in which something ran on it; None where that is not told, as
    of a MIG instance."""


def uses(gpus: Sequence[Gpu]) -> list[GpuUse]:
    """How some GPUs are used now."""
    if not gpus:
        return []
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        try:
            return list(_uses(gpus))
        finally:
            pynvml.nvmlShutdown()
    return []


def _uses(gpus: Sequence[Gpu]) -> Iterator[GpuUse]:
    for gpu in gpus:
        with suppress(pynvml.NVMLError):
            handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            busy: float | None = None
            with suppress(pynvml.NVMLError):
                busy = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
            yield GpuUse(gpu.uuid, int(memory.used), int(memory.total), busy)
