"""The process that billiard has remove a killed worker's semaphores, and its end before that.

Every slot is told of it as it is started, and billiard takes it for granted: once it was killed,
the next slot that was to be replaced ended the whole worker by a BrokenPipeError.
"""

from __future__ import annotations

import os
import select

from billiard import semaphore_tracker


class _ReplacedTracker(semaphore_tracker.SemaphoreTracker):
    """Starts another tracker when the one before is gone, and tells it of all semaphores."""

    _fd: int | None
    _names: set[str]

    def ensure_running(self) -> None:
        with self._lock:
            pipe = self._fd
            is_gone = pipe is not None and _is_unread(pipe)
            if pipe is not None and is_gone:
                os.close(pipe)
                self._fd = None
        super().ensure_running()
        if is_gone:
            for name in tuple(self._names):
                super()._send("REGISTER", name)

    def _send(self, command: str, name: str) -> None:
        super()._send(command, name)
        if command == "REGISTER":
            self._names.add(name)
        else:
            self._names.discard(name)


def replace_killed_tracker() -> None:
    """Have this process start another tracker as often as its own is killed."""
    tracker = semaphore_tracker._semaphore_tracker  # its methods are bound to it elsewhere
    if not isinstance(tracker, _ReplacedTracker):
        tracker.__class__ = _ReplacedTracker
        tracker._names = set()


def _is_unread(pipe: int) -> bool:
    """Whether nobody has the other end of a pipe any more."""
    poll = select.poll()
    poll.register(pipe, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
