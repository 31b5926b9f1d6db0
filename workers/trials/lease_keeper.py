"""The thread that sees to the lease of whatever trial this process runs: one for all of its trials.

Between two of them it sees to what is to be done while the process idles.

Beginning and ending a thread takes as long as a short trial, and few of those live to a renewal.

Invariant: while a lease is left nothing of it is done, nor after; what fails ends one lease's care,
and not the thread.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from typing import Self

from workers.logs import get_logger

log = get_logger(__name__)


class LeaseKeeper:
    """Goes through the rounds of one lease at a time, while open."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._rounds: Iterator[float] | None = None
        self._due = math.inf
        #: when the thread looks again by itself; `-inf` while it does not sleep
        self._wakes_at = -math.inf
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def keep(self, rounds: Iterator[float]) -> None:
        """Begin with the rounds of a lease, in place of any others.

        Args:
            rounds: Each gives the seconds until it is to go on.
        """
        with self._changed:
            self._rounds, self._due = rounds, time.monotonic() + next(rounds)
            if self._due < self._wakes_at:
                self._changed.notify()

    def leave(self) -> None:
        """End with them; one that is under way is waited for."""
        with self._changed:
            self._rounds, self._due = None, math.inf

    def _work(self) -> None:
        with self._changed:
            while not self._is_closed:
                pause = self._due - time.monotonic()
                if pause > 0:
                    self._wakes_at = self._due
                    self._changed.wait(None if math.isinf(pause) else pause)
                    self._wakes_at = -math.inf
                elif self._rounds is not None:
                    self._go_on(self._rounds)

    def _go_on(self, rounds: Iterator[float]) -> None:
        try:
            self._due = time.monotonic() + next(rounds)
        except Exception:
            # not seen to any more, the lease runs out, which its holder sees by its own clock
            log.exception("lease_not_kept")
            self._rounds, self._due = None, math.inf
