"""What trials print, written on to this worker's own output, whose reader may stand still.

Invariant: nobody waits longer for the reader than a moment, what waits is bounded, and what is left
out is said in its place.
"""

from __future__ import annotations

import os
import select
import time
from typing import Final

#: How long is waited for whoever reads; once in vain, not again until something was read.
_PATIENCE_SECONDS: Final = 1.0

#: Bytes that wait for them.
_MOST_WAITING: Final = 2**20

#: What a pipe takes as a whole when it is said to take something.
_AT_ONCE: Final = 4096


class Onward:
    """Writes to a descriptor.

    Args:
        descriptor: Also of a pipe or a terminal that nobody reads at the moment.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting = bytearray()
        self._dropped = 0
        self._is_stalled = False

    def add(self, text: str) -> None:
        """Have a text written, with a line's end, by the next `flush`."""
        if not text:
            return
        self._waiting += (text if text.endswith(("\n", "\r")) else f"{text}\n").encode()
        if len(self._waiting) > _MOST_WAITING:
            self.flush()
            self._drop()

    def flush(self) -> None:
        """Write what the reader takes, within a moment."""
        deadline = time.monotonic() + (0.0 if self._is_stalled else _PATIENCE_SECONDS)
        try:
            while self._waiting and self._is_writable(deadline):
                if self._dropped:
                    self._waiting[:0] = f"\n[trialfleet: {self._dropped} bytes left out]\n".encode()
                    self._dropped = 0
                del self._waiting[: os.write(self._descriptor, self._waiting[:_AT_ONCE])]
        except BlockingIOError:
            pass
        except (OSError, ValueError):  # whoever read it does not any more, or nobody ever did
            self._waiting.clear()
        self._is_stalled = bool(self._waiting)

    def _is_writable(self, deadline: float) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))

    def _drop(self) -> None:
        """Leave out the oldest, to the end of a line."""
        surplus = len(self._waiting) - _MOST_WAITING
        if surplus > 0:
            line = self._waiting.find(b"\n", surplus) + 1
            end = line or surplus
            del self._waiting[:end]
            self._dropped += end
