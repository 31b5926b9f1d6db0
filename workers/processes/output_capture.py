"""Captures what a pool process and its children write to their standard output and error.

The descriptors are switched once, to the process's spool; each attempt at a trial begins with a
mark there, which costs some microseconds. What this worker tells of itself goes where it went.

Invariant: descriptors 1 and 2 lead to the spool when an attempt begins, whatever the one before
did with them (trials of less than half a second may share what one of them did), and to where they
led before when the capture is closed.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Final, Self

import redis

from workers.coordination.trial_output import Attempt
from workers.disk.output_spool import Marks, OutputSpool, new_spool
from workers.processes.output_keeper import OutputKeeper
from workers.settings import Settings

#: Whose log lines are this worker's own.
_OWN: Final = ("workers", "orchestrator", "celery", "kombu", "billiard", "amqp")

#: Between two looks at where the descriptors lead: an objective may have changed that.
_CHECK_SECONDS: Final = 0.5

#: `setvbuf`: C's own buffer is written at the end of each line.
_LINE_BUFFERED: Final = 1


class OutputCapture:
    """Captures while open.

    Args:
        client: The fleet's Redis.
        settings: This worker's.
        directory: Of this process alone, on local disk.

    Raises:
        OSError: The disk takes no more.
    """

    def __init__(self, client: redis.Redis, settings: Settings, directory: Path) -> None:
        path, self._descriptor = new_spool(directory)
        self._inode = os.fstat(self._descriptor).st_ino
        self._spool = OutputSpool(path)
        self._marks = self._spool.marks
        self._before = os.dup(1), os.dup(2)
        self._keeper = OutputKeeper(client, settings, self._spool, self._before[0])
        self._handler = _ObjectiveLines(self._descriptor, self._marks)
        self._checked_at = time.monotonic()
        #: of C's library: what it has not written yet is an attempt's, too
        self._flush_c = _flush_of_c()

    @property
    def own_error(self) -> int:
        """The descriptor of this worker's own standard error."""
        return self._before[1]

    def __enter__(self) -> Self:
        self._flush()
        self._lead_to_spool()
        _buffer_lines()
        self._keeper.__enter__()
        return self

    def hear_objectives(self) -> None:
        """Take in what objectives log, too; to be called when logging is set up."""
        logging.getLogger().addHandler(self._handler)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self._handler)
        self._flush()
        os.dup2(self._before[0], 1)
        os.dup2(self._before[1], 2)
        self._keeper.__exit__()
        self._spool.__exit__()
        os.close(self._descriptor)

    def of(self, attempt: Attempt) -> AbstractContextManager[None]:
        """What is printed in this block is the attempt's."""
        return _Captured(self, attempt)

    def begin(self, attempt: Attempt) -> None:
        """From here on, an attempt prints."""
        now = time.monotonic()
        if now - self._checked_at > _CHECK_SECONDS:
            self._checked_at = now
            if not self._leads_to_spool():
                self._lead_to_spool()
        self._handler.is_active = True
        self._mark(attempt)

    def end(self) -> None:
        """It prints no more."""
        self._handler.is_active = False
        self._flush()
        self._mark(None)

    def _mark(self, attempt: Attempt | None) -> None:
        with suppress(OSError):  # a disk that is full takes no output, either
            os.write(self._descriptor, self._marks.of(attempt))

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # whatever an objective put there
                stream.flush()
        self._flush_c()

    def _leads_to_spool(self) -> bool:
        with suppress(OSError):
            return os.fstat(1).st_ino == self._inode == os.fstat(2).st_ino
        return False

    def _lead_to_spool(self) -> None:
        os.dup2(self._descriptor, 1)
        os.dup2(self._descriptor, 2)


class _Captured:
    """A `with` block in which an attempt prints."""

    __slots__ = ("_attempt", "_capture")

    def __init__(self, capture: OutputCapture, attempt: Attempt) -> None:
        self._capture, self._attempt = capture, attempt

    def __enter__(self) -> None:
        self._capture.begin(self._attempt)

    def __exit__(self, *_: object) -> None:
        self._capture.end()


class _ObjectiveLines(logging.Handler):
    """Writes an objective's log lines, and the error that ended it, to the spool."""

    def __init__(self, descriptor: int, marks: Marks) -> None:
        super().__init__()
        self._descriptor, self._marks = descriptor, marks
        self.is_active = False
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, if it is an attempt's."""
        if not self.is_active:
            return
        line: Any
        if record.name.partition(".")[0] in _OWN:
            line = record.msg.get("exception") if isinstance(record.msg, dict) else None
        else:
            line = self.format(record)
        if line:
            with suppress(OSError):
                os.write(self._descriptor, self._marks.logged(str(line)))

    def format(self, record: logging.LogRecord) -> str:
        """One that does not fit its arguments as it stands: the error is said where it was made."""
        try:
            return super().format(record)
        except Exception:  # noqa: BLE001 - an objective's own
            return f"{record.msg} {traceback.format_exc(limit=0)}"


def _flush_of_c() -> Callable[[], None]:
    """Writes what C's library has not written yet of the two streams; other threads go on.

    Not of all its streams: a thread of an objective that waits for one of them keeps it locked.
    """
    libc = ctypes.CDLL(None)
    form = "{}" if sys.platform == "linux" else "__{}p"
    names = [form.format(name) for name in ("stdout", "stderr")]
    streams = [ctypes.c_void_p.in_dll(libc, name) for name in names]

    def flush() -> None:
        for stream in streams:
            libc.fflush(stream)

    return flush


def _buffer_lines() -> None:
    """Have each line written when it is complete: who is killed leaves what it printed."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        stdout = ctypes.c_void_p.in_dll(libc, "stdout")
        libc.setvbuf(stdout, None, _LINE_BUFFERED, 0)
