"""The cores of this host, and how a worker's pool processes share them."""

from __future__ import annotations

import os


def count_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_cores(slots: int) -> None:
    """Have this pool process compute with its share; to be called before torch is imported."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, count_cores() // slots)))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
