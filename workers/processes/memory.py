"""What this process uses of its host's memory and of its GPU's, cheap enough for each beat."""

from __future__ import annotations

import sys
from typing import NamedTuple

import psutil


class UsedMemory(NamedTuple):
    """Bytes that a process uses."""

    host: int = 0
    gpu: int | None = None
    """What torch has reserved of its GPU; None where it has none."""

    @classmethod
    def now(cls) -> UsedMemory:
        """Of this process."""
        torch = sys.modules.get("torch")  # whoever has not imported it uses no GPU
        cuda = getattr(torch, "cuda", None)
        gpu = None if cuda is None or not cuda.is_initialized() else cuda.memory_reserved()
        return cls(psutil.Process().memory_info().rss, gpu)
