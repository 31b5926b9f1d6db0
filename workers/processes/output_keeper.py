"""Keeping what trials print: out of a spool into files, Redis, and this worker's own output.

Invariant: secrets that this process knows of are hidden before anything is kept or passed on; what
cannot be kept costs no training.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Final, Self

import redis

from workers.coordination.trial_output import KEPT_BYTES, Attempt, Printed, TrialOutput
from workers.disk.output_files import OutputFile, output_file
from workers.disk.output_spool import OutputSpool, Piece
from workers.disk.uploads import Errand, Uploads
from workers.logs import get_logger
from workers.passwords import hide, learn_environment
from workers.processes.onward import Onward
from workers.settings import Settings

log = get_logger(__name__)

#: Of what one attempt has printed and Redis has not taken, what is kept for when it does.
_PENDING: Final = 64

_STANDARD_OUTPUT: Final = 1

#: How long a process that ends waits until the rest is kept.
_END_SECONDS: Final = 10.0


class OutputKeeper:
    """Keeps what one spool holds; while open, about once a second.

    Args:
        client: The fleet's Redis.
        settings: This worker's.
        spool: Where it is read from.
        passed_on_to: The descriptor to which what is printed goes, too.
        before_look: Called before each look.
    """

    def __init__(
        self,
        client: redis.Redis,
        settings: Settings,
        spool: OutputSpool,
        passed_on_to: int,
        before_look: Callable[[], None] = lambda: None,
    ) -> None:
        learn_environment(os.environ)
        self._output = TrialOutput(client)
        self._home = settings.home
        self._uploads = Uploads(settings.home, has_store=settings.store is not None)
        self._spool = spool
        self._before_look = before_look
        self._onward = Onward(passed_on_to)
        self._pause_seconds = settings.times.beat / 10
        self._pending: list[Printed] = []
        self._is_disk_full = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    @property
    def is_done(self) -> bool:
        """Whether the spool is read no more."""
        return not self._thread.is_alive()

    def __exit__(self, *_: object) -> None:
        """Keep the rest, nobody prints any more; a disk that hangs does not keep a worker."""
        self._ended.set()
        self._thread.join(_END_SECONDS)
        if not self.is_done:
            log.error(
                "output_left", hint="a disk or Redis does not answer: the last output is lost"
            )

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._ended.wait(self._pause_seconds)
            try:
                if not is_last:
                    self._before_look()
                self.keep(is_last=is_last)
            except Exception:
                log.exception("output_not_kept")

    def keep(self, *, is_last: bool = False) -> None:
        """Keep what was printed since the last look.

        Args:
            is_last: Whether nobody prints any more.
        """
        for pieces in self._spool.chunks(is_last=is_last):
            passed_on = b"".join(each.content for each in pieces if not each.is_logged)
            for attempt, group in groupby(pieces, attrgetter("attempt")):
                if attempt is not None:
                    self._write(attempt, list(group))
            with self._best_effort("output_place_not_noted"):
                self._spool.note()
            self._onward.add(hide(passed_on.decode(errors="replace")))
        self._tell()
        self._onward.flush()

    def _write(self, attempt: Attempt, pieces: Sequence[Piece]) -> None:
        """Write what an attempt printed to its file, and note it for Redis."""
        text = hide(b"".join(each.content for each in pieces).decode(errors="replace"))
        begin, is_last = self._spool.printed, pieces[-1].is_last
        if text:
            self._spool.printed += len(text.encode())
            self._write_file(attempt, begin - self._spool.lost, text)
        if self._spool.printed:
            self._note(Printed(attempt, begin, text, is_last))
        if is_last:
            if self._spool.printed:
                with self._best_effort("output_not_uploaded"):
                    self._uploads.add(_errand(attempt))
            self._spool.printed = self._spool.lost = 0

    def _note(self, printed: Printed) -> None:
        """Note for Redis what it has not got yet."""
        before = self._pending[-1] if self._pending else None
        if before is not None and before.attempt == printed.attempt:
            self._pending.pop()
            printed = printed._replace(at=before.at, text=before.text + printed.text)
        content = printed.text.encode()
        if len(content) > KEPT_BYTES:
            last = content[-KEPT_BYTES:].decode(errors="ignore")
            at = printed.at + len(content) - len(last.encode())
            printed = printed._replace(at=at, text=last)
        self._pending.append(printed)

    def _write_file(self, attempt: Attempt, begin: int, text: str) -> None:
        """Write to an attempt's file, at its place: whoever was killed here may have done so."""
        file = output_file(self._home, *attempt)
        try:
            file.write(begin, text)
            self._is_disk_full = False
        except OSError as error:
            self._spool.lost += begin + len(text.encode()) - _end(file, begin)
            self._refused("output_not_written", error)

    @contextmanager
    def _best_effort(self, event: str) -> Iterator[None]:
        """Go on where the disk takes no more."""
        try:
            yield
        except OSError as error:
            self._refused(event, error)

    def _refused(self, event: str, error: OSError) -> None:
        """Say once that the disk takes no more."""
        if not self._is_disk_full:
            log.warning(event, error=str(error), hint="make room on the disk")
        self._is_disk_full = True

    def _tell(self) -> None:
        """Have Redis keep what is pending; while it is away, the latest stays for later."""
        if not self._pending:
            return
        try:
            self._output.keep(self._pending)
            self._pending.clear()
        except redis.RedisError:  # the lease tells that it is away
            del self._pending[:-_PENDING]


def keep_rest(client: redis.Redis, settings: Settings, path: Path) -> None:
    """Keep what a process that died had printed, its last words among it."""
    with suppress(FileNotFoundError), OutputSpool(path) as spool:
        OutputKeeper(client, settings, spool, _STANDARD_OUTPUT).keep(is_last=True)


def _end(file: OutputFile, begin: int) -> int:
    """How far a file goes that takes no more; not known, it has nothing of what came last."""
    try:
        return max(begin, file.end())
    except OSError:
        return begin


def _errand(attempt: Attempt) -> Errand:
    study, trial, number, token, generation = attempt
    return Errand("output", study, trial, token, number, generation or "")
