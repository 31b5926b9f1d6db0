"""The GPUs of this host, read through NVML, which initialises no CUDA context."""

from __future__ import annotations

import functools
import os

import pynvml


@functools.cache
def visible_gpus() -> tuple[str, ...]:
    """What each slot's `CUDA_VISIBLE_DEVICES` may be: the variable's own entries, else 0..n-1."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return tuple(part.strip() for part in given.split(",") if part.strip() not in {"", "-1"})
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        return tuple(str(index) for index in range(pynvml.nvmlDeviceGetCount()))
    finally:
        pynvml.nvmlShutdown()


def count_gpus() -> int:
    """How many GPUs this process may hand out."""
    return len(visible_gpus())


def gpu_of_slot(slot: int) -> str | None:
    """The GPU of a pool process; slots beyond the GPUs share them in turn."""
    gpus = visible_gpus()
    return gpus[slot % len(gpus)] if gpus else None


def take_gpu(slot: int) -> str | None:
    """Let this pool process see its GPU alone; to be called before torch is imported.

    Returns:
        The GPU, or None on a box without one.
    """
    gpu = gpu_of_slot(slot)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    return gpu
