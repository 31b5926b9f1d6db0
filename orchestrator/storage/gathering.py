"""Gathers the many small writes that one trial takes, and appends them to the journal at once.

Optuna writes a trial's parameters and attributes one by one. Its storage sees each of them at
once; the file has them, in their order, when the gathering ends.

Invariant: what was gathered is on disk before a `sync` returns. Where a disk is full in the midst
of it, the logs that it took stay, since readers may have seen them; the rest is kept, and nothing
is written before it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from optuna.storages.journal import BaseJournalBackend

from orchestrator.storage.journal import JournalFile, encode, parse


class GatheringJournal(BaseJournalBackend):
    """A journal whose writes can be gathered.

    Args:
        journal: What they are appended to.
    """

    def __init__(self, journal: JournalFile) -> None:
        self._journal = journal
        self._lock = threading.RLock()
        self._num_gathering = 0
        #: lines that are not in the file
        self._waiting: list[bytes] = []
        #: of them, the last ones that were not read
        self._num_unread = 0

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """Gather what is appended meanwhile, and append it at the end, whatever ends it.

        Raises:
            StorageFullError: The disk takes no more; the rest is kept for the next try.
        """
        self._append_waiting()  # what a disk refuses must not grow
        self._num_gathering += 1
        try:
            yield
        finally:
            self._num_gathering -= 1
            if not self._num_gathering:
                self._append_waiting()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The logs from a number on, those that are not in the file included."""
        unread = self._take_unread(log_number_from)
        if unread is None:
            yield from self._journal.read_logs(log_number_from)
        elif unread:
            yield from parse(unread)

    def _take_unread(self, log_number_from: int) -> list[bytes] | None:
        """What was gathered from a log on, to be read once; None if the file has to be read."""
        with self._lock:
            num_unread, self._num_unread = self._num_unread, 0
            num_known = len(self._waiting) - num_unread
            is_next = log_number_from == self._journal.num_read + num_known
            if self._waiting and is_next and self._journal.is_read_whole:
                return self._waiting[num_known:]
            self._append_waiting()
            return None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append logs, now or when the gathering ends.

        Raises:
            StorageFullError: The disk takes no more.
        """
        with self._lock:
            if self._num_gathering and (self._waiting or self._journal.is_read_whole):
                self._waiting += encode(logs)
                self._num_unread += len(logs)
                return
            self._append_waiting()
            self._journal.append_logs(logs)

    def sync(self) -> None:
        """Bring all that was appended or gathered to disk.

        Raises:
            StorageFullError: The disk takes no more.
            FleetError: The disk failed.
        """
        self._append_waiting()
        self._journal.sync()

    def close(self) -> None:
        """Bring all that was appended to disk, and let another process write.

        What a full disk refused until now is dropped, the end of what it cut too: no `sync` has
        told anybody of it.
        """
        self._journal.close()

    def _append_waiting(self) -> None:
        with self._lock:
            if self._waiting:
                num_read = len(self._waiting) - self._num_unread
                try:
                    self._journal.append_lines(self._waiting, num_read)
                finally:  # what a full disk took is read from the file
                    self._num_unread = min(self._num_unread, len(self._waiting))
