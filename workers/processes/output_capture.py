"""Captures what a pool process and its children write to their standard output and error.

The descriptors are switched once, to the process's spool; each attempt at a trial begins with a
mark there, which costs some microseconds. What this worker tells of itself goes where it went.

Invariant: descriptors 1 and 2 lead to the spool when an attempt begins, whatever the one before
did with them (trials of less than half a second may share what one of them did), and to where they
led before when the capture is closed. While the spool's disk is full, what led there leads
nowhere, so that no objective fails for printing; nothing that was not searched for passwords
reaches another place.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Final, Self

import redis

from workers.coordination.trial_output import Attempt
from workers.disk.output_spool import Marks, OutputSpool, new_spool
from workers.disk.room import has_room
from workers.logs import get_logger
from workers.processes.output_keeper import OutputKeeper
from workers.settings import Settings

log = get_logger(__name__)

#: Whose log lines are this worker's own.
_OWN: Final = ("workers", "orchestrator", "celery", "kombu", "billiard", "amqp")

#: Between two looks at where the descriptors lead: an objective may have changed that.
_CHECK_SECONDS: Final = 0.5

#: `setvbuf`: C's own buffer is written at the end of each line.
_LINE_BUFFERED: Final = 1

#: Bytes that are taken on the disk ahead of what is printed between two looks.
_AHEAD: Final = 2**19

_LOST: Final = b"\n[trialfleet: the disk is full; what is printed from here on is lost]\n"

_WAS_LOST: Final = (
    b"[trialfleet: the disk was full; what was printed before this is lost in part]\n"
)


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
        self._spool = OutputSpool(path)
        self._marks = self._spool.marks
        self._before = os.dup(1), os.dup(2)
        self._nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._keeper = OutputKeeper(
            client, settings, self._spool, self._before[0], self._see_to_room
        )
        self._handler = _ObjectiveLines(self._descriptor, self._marks)
        self._checked_at = time.monotonic()
        self._attempt: Attempt | None = None
        self._is_full = False
        #: which descriptors this leads nowhere; an objective may lead others there for itself
        self._led_nowhere: set[int] = set()
        #: between whoever begins and ends attempts and whoever looks after the disk
        self._lock = threading.Lock()
        #: of C's library: what it has not written yet is an attempt's, too
        self._flush_c = _flush_of_c()

    @property
    def own_error(self) -> int:
        """The descriptor of this worker's own standard error."""
        return self._before[1]

    def __enter__(self) -> Self:
        self._flush()
        self._lead(self._descriptor)
        self._see_to_room()
        _buffer_lines()
        self._keeper.__enter__()
        return self

    def hear_objectives(self) -> None:
        """Take in what objectives log, too; to be called when logging is set up."""
        logging.getLogger().addHandler(self._handler)

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self._handler)
        self._flush()
        self._keeper.__exit__()
        os.dup2(self._before[0], 1)
        os.dup2(self._before[1], 2)
        if self._keeper.is_done:  # else these numbers must not become those of other files
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
            self._lead_again()
            self._see_to_room()
        with self._lock:
            self._attempt = attempt
            self._mark()
            self._handler.is_active = not self._is_full

    def end(self) -> None:
        """It prints no more."""
        self._flush()
        with self._lock:
            self._handler.is_active = False
            self._attempt = None
            self._mark()

    def _mark(self) -> None:
        """Say in the spool whose what follows is; where that cannot be, nothing follows."""
        mark, written = self._marks.of(self._attempt), 0
        with suppress(OSError):
            written = os.write(self._descriptor, mark)
        if written < len(mark):
            self._leave_spool()

    def _see_to_room(self) -> None:
        """Leave the spool before its disk is full, and come back when it has room again."""
        is_full = True
        with suppress(OSError):
            is_full = not has_room(self._descriptor, _AHEAD)
        with self._lock:
            if is_full:
                self._leave_spool()
            elif self._is_full:
                self._return_to_spool()

    def _leave_spool(self) -> None:
        if self._is_full:  # an objective may have led them back by a copy that it made before
            self._lead_nowhere()
            return
        self._is_full, self._handler.is_active = True, False
        if self._attempt is not None:
            with suppress(OSError):  # of the room that was taken ahead, some is left
                os.write(self._descriptor, _LOST)
        self._lead_nowhere()
        log.warning(
            "output_lost",
            path=str(self._spool.path),
            hint="make room on its disk: until then, what trials print is lost from here on",
        )

    def _return_to_spool(self) -> None:
        self._is_full = False
        self._mark()  # what was marked meanwhile may not be there
        if not self._is_full:
            self._lead_back()
            self._handler.is_active = self._attempt is not None
            if self._attempt is not None:  # it may have begun when there was no room
                with suppress(OSError):
                    os.write(self._descriptor, _WAS_LOST)
            log.info("output_kept_again")

    def _flush(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # whatever an objective put there
                stream.flush()
        self._flush_c()

    def _lead_again(self) -> None:
        """Lead the descriptors where they ought to, if an objective led them elsewhere."""
        with self._lock:
            wanted = self._nowhere if self._is_full else self._descriptor
            if not all(_leads_to(at, wanted) for at in (1, 2)):
                self._lead(wanted)
            self._led_nowhere = {1, 2} if self._is_full else set()

    def _lead(self, descriptor: int) -> None:
        """Lead both descriptors somewhere."""
        for at in (1, 2):
            os.dup2(descriptor, at)

    def _lead_nowhere(self) -> None:
        """Lead those descriptors nowhere that lead to the spool."""
        for at in (1, 2):
            if _leads_to(at, self._descriptor):
                os.dup2(self._nowhere, at)
                self._led_nowhere.add(at)

    def _lead_back(self) -> None:
        """Lead those back to the spool, where no objective has led them elsewhere since."""
        for at in self._led_nowhere:
            if _leads_to(at, self._nowhere):
                os.dup2(self._descriptor, at)
        self._led_nowhere.clear()


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


def _leads_to(at: int, descriptor: int) -> bool:
    with suppress(OSError):
        return os.path.samestat(os.fstat(at), os.fstat(descriptor))
    return False


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
