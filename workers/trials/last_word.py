"""Who tells how an attempt ends: one thread, from its first word on to the process's end.

Invariant: a thread that could not tell it gives the word back, and another one tells it.
"""

from __future__ import annotations

import threading


class LastWord:
    """Taken as often as its holder likes, and given back at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    def take(self, *, waits: bool = True) -> bool:
        """Have the word; False if another thread has it, and this one does not wait."""
        if self._holder == threading.get_ident():
            return True
        if not self._lock.acquire(blocking=waits):
            return False
        self._holder = threading.get_ident()
        return True

    def give_back(self) -> None:
        """Let another thread have it, however often this one took it."""
        self._holder = None
        self._lock.release()
