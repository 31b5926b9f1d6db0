"""A terminal that closes, or a lost connection to it: what ran there ends in order."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable
from types import FrameType


def on_hangup(end: Callable[[], None]) -> None:
    """Call `end` when the terminal closes, once; not under `nohup`, nor over another handler.

    What is written to the terminal after that goes nowhere, rather than being an error.
    """
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL:
        return

    def hang_up(number: int, _frame: FrameType | None) -> None:
        # the kernel and the shell may both tell
        signal.signal(number, signal.SIG_IGN)
        _leave_terminal()
        end()

    signal.signal(signal.SIGHUP, hang_up)


def _leave_terminal() -> None:
    """Point the standard streams that are devices at /dev/null; files and pipes stay."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)
