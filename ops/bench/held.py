"""What a process holds between two trials: memory, files, threads, maps, and Python's objects."""

from __future__ import annotations

import gc
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

#: Kinds of things that are told where they grew.
_TOLD = 5


@dataclass(frozen=True, slots=True)
class Held:
    """What this process holds."""

    rss: int
    """Bytes."""
    files: int
    threads: int
    """Those of the C libraries, too."""
    maps: int
    """Of memory: of files, of libraries, and of what they allocate."""
    kinds: Counter[str] = field(repr=False)
    """What Python reaches and its collector tracks, by type; threads by name; maps by what is
    mapped."""

    @classmethod
    def now(cls) -> Held:
        """Of this process, after garbage was collected."""
        gc.collect()
        process, mapped = psutil.Process(), _mapped()
        kinds = Counter(f"{_name(type(each))}" for each in gc.get_objects())
        kinds.update(f"thread {each.name}" for each in threading.enumerate())
        kinds.update(f"map {name}" for name in mapped)
        return cls(
            process.memory_info().rss,
            process.num_fds(),
            process.num_threads(),
            len(mapped),
            kinds,
        )

    def figures(self) -> dict[str, float]:
        """For people: megabytes and counts."""
        return {
            "rss_mb": round(self.rss / 2**20, 1),
            "files": self.files,
            "threads": self.threads,
            "maps": self.maps,
            "objects": sum(self.kinds.values()),
        }

    def grown_since(self, before: Held) -> dict[str, int]:
        """What there is more of, the most first."""
        more = self.kinds - before.kinds
        return dict(more.most_common(_TOLD))


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _mapped() -> list[str]:
    """What each map of memory is of; on Linux."""
    if sys.platform != "linux":
        return []
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return [Path(line.split(maxsplit=5)[5]).name if "/" in line else "memory" for line in lines]
