"""What a process that is started takes over from the one that starts it.

Invariant: looking changes nothing, not even for a moment.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from workers.managers.process_state import environment, limits


def inherited() -> list[Any]:
    """What a process that is started now takes over from this one, for comparison.

    Not what it is told: its import path, arguments, working directory and streams.
    """
    ignored = [each for each in signal.valid_signals() if _signal.getsignal(each) == signal.SIG_IGN]
    cores = os.sched_getaffinity(0) if sys.platform == "linux" else ()
    priority = os.getpriority(os.PRIO_PROCESS, 0)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return [environment(), _umask(), priority, limits(), cores, mask, ignored]


def _umask() -> str | None:
    """Not by setting it, as the call does: another thread may make a file meanwhile."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(line for line in lines if line.startswith("Umask:"))
    return None
