"""What the C library keeps of memory that was freed, and when it goes back to the system.

glibc keeps what one trial freed for the next one, also where that needs little of it: a process
would stay as large as the largest of its trials.

Invariant: giving memory back, and faulting it in anew, takes a small share of the time.
"""

from __future__ import annotations

import ctypes
import math
import sys
import time
from collections.abc import Callable
from typing import Final

import psutil

#: How much a process may grow before it is worth a look at what can go back.
_GROWTH_BYTES: Final = 16 << 20

#: What may go back of each second since the last time. A megabyte was seen to take up to 1 ms, with
#: what the next trial needs of it again: 2 % of the time.
_BYTES_A_SECOND: Final = 20 << 20


class Heap:
    """The memory of this process that the C library manages.

    Args:
        clock: Seconds, monotonic.
        rss: The memory that this process holds, in bytes.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        rss: Callable[[], int] = lambda: int(psutil.Process().memory_info().rss),
    ) -> None:
        self._clock = clock
        self._rss = rss
        self._trim = _find_trim()
        #: what there was when it was last given back
        self._least = rss()
        self._given_back_at = clock()

    def seconds_to_wait(self, rss: int) -> float:
        """How long what may be freed of the memory that is held has to wait.

        Args:
            rss: The memory that this process holds, in bytes.

        Returns:
            0 where it may go back now; infinite where there is little of it.
        """
        self._least = min(self._least, rss)  # some went back by itself
        grown = rss - self._least
        if self._trim is None or grown < _GROWTH_BYTES:
            return math.inf
        return max(0.0, self._given_back_at + grown / _BYTES_A_SECOND - self._clock())

    def give_back(self) -> bool:
        """Give freed memory back where there may be much of it, for the time that it takes.

        Returns:
            Whether it was done.
        """
        if self._trim is None or self.seconds_to_wait(self._rss()) > 0.0:
            return False
        self._trim(0)
        self._least, self._given_back_at = self._rss(), self._clock()
        return True


def _find_trim() -> Callable[[int], object] | None:
    """The C library's own; None where it has none, as musl and that of macOS."""
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
