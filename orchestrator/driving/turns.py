"""The threads in which studies have their turns: a few for quick ones, one more for each slow one.

Invariant: as long as fewer than `_MOST_THREADS` turns are slow, one that is handed in begins within
about a second, whatever the others do; and no turn that hangs keeps this process from ending.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Final, TypeAlias

#: How many quick turns run at the same time.
_QUICK_THREADS: Final = 8

#: How many turns run at the same time, slow ones included.
_MOST_THREADS: Final = 200

#: A turn that has run for so long is slow: another thread takes its place among the quick ones.
_SLOW_SECONDS: Final = 0.5

#: What a thread's name begins with while it is at a turn of a study, whose name follows.
_PREFIX: Final = "turn of "

_Job: TypeAlias = tuple[str, Future[None], Callable[[], None]]


class TurnPool:
    """Runs turns beside the loop.

    Not a `ThreadPoolExecutor`: that one is joined when the interpreter ends, hung turns included,
    and it cannot tell slow turns from quick ones.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._num_threads = 0
        #: by thread: since when it is at a turn
        self._busy_since: dict[int, float] = {}
        self._is_closed = False

    def submit(self, study: str, turn: Callable[[], None]) -> Future[None]:
        """Have a turn of a study run as soon as there is a thread for it."""
        future: Future[None] = Future()
        self._jobs.put((study, future, turn))
        self.relieve()
        return future

    def relieve(self) -> None:
        """Begin threads for what waits, those that slow turns hold not counted; asked often."""
        with self._lock:
            num_idle = self._num_threads - len(self._busy_since)
            wanted = min(self._num_wanted(), self._num_threads + self._jobs.qsize() - num_idle)
            for _ in range(self._num_threads, wanted):
                self._num_threads += 1
                threading.Thread(target=self._work, daemon=True).start()

    def close(self) -> None:
        """Have the threads end, each after the turn that it is at."""
        with self._lock:
            self._is_closed = True
            for _ in range(self._num_threads):
                self._jobs.put(None)

    def _num_wanted(self) -> int:
        slow_since = time.monotonic() - _SLOW_SECONDS
        num_slow = sum(since < slow_since for since in self._busy_since.values())
        return min(_MOST_THREADS, _QUICK_THREADS + num_slow)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._run(*job)
            del job  # what the turn held
            with self._lock:
                if not self._is_closed and self._num_threads > self._num_wanted():
                    self._num_threads -= 1
                    return

    def _run(self, study: str, future: Future[None], turn: Callable[[], None]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        problem: BaseException | None = None
        with self._busy(study):
            try:
                turn()
            except BaseException as error:  # noqa: BLE001 - whoever waits for the turn sees to it
                problem = error
        if problem is None:
            future.set_result(None)
        else:
            future.set_exception(problem)

    @contextmanager
    def _busy(self, study: str) -> Iterator[None]:
        thread = threading.current_thread()
        name, thread.name = thread.name, f"{_PREFIX}{study}"
        with self._lock:
            self._busy_since[threading.get_ident()] = time.monotonic()
        try:
            yield
        finally:
            thread.name = name
            with self._lock:
                del self._busy_since[threading.get_ident()]


def studies_at_turns() -> list[str]:
    """The studies that a thread of this process is at a turn of."""
    names = {thread.name for thread in threading.enumerate()}
    return sorted(name.removeprefix(_PREFIX) for name in names if name.startswith(_PREFIX))
