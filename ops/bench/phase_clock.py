"""Times phases of this process: wall and processor time of each call, those within left out."""

from __future__ import annotations

import functools
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any


class PhaseClock:
    """Counts what calls cost, by phase; what one calls of another phase is the other's alone."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._lock = threading.Lock()
        #: phase -> calls, wall seconds, processor seconds
        self._spent: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])

    def watch(self, owner: type, name: str, phase: str) -> None:
        """Have each call of a method be a part of a phase."""
        method = getattr(owner, name)

        @functools.wraps(method)
        def timed(*given: Any, **named: Any) -> Any:
            return self._call(phase, functools.partial(method, *given, **named))

        setattr(owner, name, timed)

    def reset(self) -> None:
        """Begin anew."""
        with self._lock:
            self._spent.clear()

    def spent(self) -> dict[str, list[float]]:
        """Of each phase: calls, wall seconds, processor seconds of the calling threads."""
        with self._lock:
            return {phase: list(each) for phase, each in self._spent.items()}

    def _call(self, phase: str, call: Callable[[], Any]) -> Any:
        within: list[list[float]] = self._local.__dict__.setdefault("within", [])
        within.append([0.0, 0.0])
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            return call()
        finally:
            took = time.perf_counter() - wall, time.thread_time() - cpu
            inner = within.pop()
            if within:
                within[-1][0] += took[0]
                within[-1][1] += took[1]
            with self._lock:
                spent = self._spent[phase]
                spent[0] += 1
                spent[1] += took[0] - inner[0]
                spent[2] += took[1] - inner[1]
