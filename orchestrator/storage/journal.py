"""A single-writer backend for Optuna's journal file: no lock to take, one fsync for many writes.

The file is Optuna's own JSON-lines format: `optuna-dashboard` and a notebook read it as it stands,
while it is being written.

Invariant: at most one `JournalFile` writes a path, on whatever machine mounts it: who opens it
while another one's file rests has that one write nothing more. What was appended before a `sync`
returns survives a power cut.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, Final

from optuna.storages.journal import BaseJournalBackend
from optuna.storages.journal._storage import JournalOperation
from pydantic_core import from_json

from orchestrator.storage.open_files import OPEN
from workers.disk import durable
from workers.protocol.errors import (
    FleetError,
    InvalidInputError,
    StorageFullError,
    StorageUnreadableError,
    StudyTakenOverError,
)

#: Made once: `json.dumps` makes an encoder for each log.
_to_json: Final = json.JSONEncoder(separators=(",", ":")).encode

_OPERATIONS: Final = frozenset(int(operation) for operation in JournalOperation)

#: How much of a journal is read at once.
_READ_BYTES: Final = 1 << 18


class JournalReader(BaseJournalBackend):
    """Reads a journal that somebody else may be writing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        #: a log's number and where it begins in the file
        self._position = (0, 0)
        self._inode: int | None = None

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The logs from a number on; a last line that is not whole yet is left for later.

        Raises:
            StorageUnreadableError: It is no file.
            FleetError: Another journal has taken the place of the one that was read from.
        """
        number, offset = self._position if self._position[0] <= log_number_from else (0, 0)
        found = state_of_file(self._path)
        if log_number_from and self._inode not in {None, found.st_ino}:
            raise FleetError(
                f"{self._path} was written anew, since the study's space has become wider; load"
                " the study again"
            )
        self._inode = found.st_ino
        if found.st_size <= offset:
            return
        with self._path.open("rb") as file:
            file.seek(offset)
            while lines := _whole_lines(file):
                for line, log in zip(lines, parse(lines), strict=True):
                    number, offset = number + 1, offset + len(line)
                    if number > log_number_from:
                        self._position = (number, offset)
                        yield log

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Refuses: the orchestrator is the only writer.

        Raises:
            FleetError: Always.
        """
        raise FleetError(
            f"{self._path} is open for reading only: the orchestrator is the only writer of a"
            f" study; {len(logs)} changes were refused"
        )


class JournalFile(JournalReader):
    """Writes a journal; close it so that another process may.

    Raises:
        StorageUnreadableError: What lies there is no file.
        InvalidInputError: Another process has it open.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._using = threading.RLock()
        self._is_dirty = self._is_closed = False
        #: what was appended last, unless it was read, and where that begins in the file
        self._unread: tuple[int, list[bytes]] = (0, [])
        #: where the file ends by what was appended; None where that is not known
        self._end: int | None = None
        self._problem: FleetError | None = None
        #: while its file rests: which one it was, and how long
        self._left_as: tuple[int, int] | None = None
        self._file = self._open()
        try:
            self._drop_torn_line()
            durable.sync(path.parent)
        except OSError:
            self._file.close()
            raise
        OPEN.used(self)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """The logs from a number on; without the file, where they are what was appended last."""
        with self._using:
            (begin, lines), self._unread = self._unread, (0, [])
            is_whole = self.is_read_whole
        number, offset = self._position
        if is_whole and number == log_number_from:
            return
        if not lines or (number, offset) != (log_number_from, begin):
            yield from super().read_logs(log_number_from)
            return
        # parsed as from the file: the storage holds nothing that somebody else may change
        for line, log in zip(lines, parse(lines), strict=True):
            number, offset = number + 1, offset + len(line)
            self._position = (number, offset)
            yield log

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append logs; they are on disk after the next `sync`.

        Raises:
            StorageFullError: The disk takes no more; those that it took stay.
        """
        self.append_lines(encode(logs))

    def append_lines(self, lines: list[bytes], num_read: int = 0) -> None:
        """Append logs as lines, each of which is taken out of the list once it is in the file.

        Args:
            lines: The logs.
            num_read: So many of the first ones need not be read any more.

        Raises:
            StorageFullError: The disk takes no more; the lines that it did not take are left.
            FleetError: Nor can what it took of a line be cut off: the file is to be opened anew.
        """
        with self._using:
            if self._problem is not None:
                raise self._problem
            self._wake()
            # of the path: a journal that somebody removed takes nothing more
            begin = self._path.stat().st_size
            num_bytes, problem = self._write(b"".join(lines))
            taken = _fitting(lines, num_bytes)
            # no reader takes a line that is cut; of a whole one it never forgets
            end = begin + sum(map(len, taken))
            self._note_appended(begin, taken, min(num_read, len(taken)))
            del lines[: len(taken)]
            if problem is not None:
                self._cut(end)
        OPEN.used(self)
        if problem is not None:
            raise StorageFullError(
                f"{self._path} cannot be written: {problem.strerror}; make room, and the study"
                " goes on"
            ) from problem

    def _write(self, text: bytes) -> tuple[int, OSError | None]:
        """Write as much as the disk takes: how many bytes, and why not all."""
        left = memoryview(text)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            return len(text) - len(left), error
        return len(text), None

    def _cut(self, end: int) -> None:
        """Cut off what a full disk took of a line.

        Raises:
            FleetError: The disk does not even take that.
        """
        try:
            self._file.truncate(end)
        except OSError as error:
            self._problem = FleetError(
                f"{self._path} ends in half a line that cannot be cut off: {error.strerror}; make"
                " room, and the study goes on"
            )
            raise self._problem from error

    def _note_appended(self, begin: int, lines: list[bytes], num_read: int) -> None:
        """Take note of lines that are in the file from `begin` on, and that some were read."""
        if not lines:
            return
        self._is_dirty = True
        begin += sum(map(len, lines[:num_read]))
        if num_read:
            self._position = (self._position[0] + num_read, begin)
        self._unread = (begin, lines[num_read:])
        self._end = begin + sum(map(len, lines[num_read:]))

    @property
    def num_read(self) -> int:
        """How many logs were read, from the first on."""
        return self._position[0]

    @property
    def is_read_whole(self) -> bool:
        """Whether nothing in the file is left to be read; only its one writer knows."""
        return self._position[1] == self._end

    def sync(self) -> None:
        """Bring all that was appended to disk.

        Raises:
            FleetError: The disk failed. What it holds now nobody knows, and no second try tells.
        """
        with self._using:
            if self._problem is not None:  # whoever asked then is not whom it concerns
                raise self._problem
            if not self._is_dirty:
                return
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise FleetError(
                    f"{self._path} cannot be brought to disk: {error.strerror}; mend the disk and"
                    " start the orchestrator again: it goes on from what was acknowledged"
                ) from error
            self._is_dirty = False

    def put_in_place_of(self, other: JournalFile) -> None:
        """Take another journal's path, and with it its place: whole, or not at all.

        Both are this process's; the other is not to be written any more.

        Raises:
            StudyTakenOverError: Somebody else has written the other meanwhile.
        """
        with other._using, self._using:
            other._wake()
            self._wake()
            self.sync()
            self._path.replace(other._path)
            self._path = other._path
            durable.sync(self._path.parent)

    def close(self) -> None:
        """Bring all to disk, and let another process write."""
        with self._using:
            self._is_closed = True
            try:
                self.sync()
            finally:
                self._file.close()
                OPEN.closed(self)

    def rest(self) -> bool:
        """Close the file until something is to be appended, with all on disk."""
        if not self._using.acquire(blocking=False):
            return False
        try:
            self.sync()
        except FleetError as error:
            self._problem = error
            return False
        else:
            if not self._file.closed:
                self._left_as = _identity(self._file)
                self._file.close()
            return True
        finally:
            self._using.release()

    def _open(self) -> BinaryIO:
        while True:
            with suppress(FileNotFoundError):
                state_of_file(self._path)
            # unbuffered: what a full disk refused must not be written later
            file = self._path.open("ab", buffering=0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.close()
                raise InvalidInputError(
                    f"{self._path} is being written by another orchestrator, which drives this"
                    " study; stop it, or watch the study with `trialfleet watch`"
                ) from error
            if self._path.exists() and self._path.stat().st_ino == _identity(file)[0]:
                return file
            file.close()  # another journal took its place meanwhile

    def _wake(self) -> None:
        """Open a file again that rested.

        Raises:
            StudyTakenOverError: Somebody else has written it meanwhile, or is at it.
        """
        if self._is_closed:
            raise ValueError(f"{self._path} was closed")
        if not self._file.closed:
            return
        try:
            file = self._open()
        except InvalidInputError as error:
            raise StudyTakenOverError(str(error)) from error
        if _identity(file) != self._left_as:
            file.close()
            raise StudyTakenOverError(
                f"{self._path} was written by another process while this one did not; nothing was"
                " written to it"
            )
        self._file = file

    def _drop_torn_line(self) -> None:
        """Cut off a last line that a crash left unfinished: nobody was told of it."""
        size = self._path.stat().st_size
        with self._path.open("rb") as file:
            end = size
            while end > 0:
                start = max(0, end - 65536)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                if newline >= 0:
                    end = start + newline + 1
                    break
                end = start
        if end < size:
            self._file.truncate(end)


def state_of_file(path: Path) -> os.stat_result:
    """What the system says of a journal's file: opening a named pipe would wait for its writer.

    Raises:
        FileNotFoundError: There is none.
        StorageUnreadableError: What is there is no file.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(found.st_mode), "a device")
        raise StorageUnreadableError(f"{path} is {kind} and no journal; move it away")
    return found


def _identity(file: BinaryIO) -> tuple[int, int]:
    """What tells that nobody else has written a file, or put another one in its place."""
    found = os.fstat(file.fileno())
    return found.st_ino, found.st_size


def _whole_lines(file: BinaryIO) -> list[bytes]:
    """The next lines, without one that is not whole yet."""
    lines = file.readlines(_READ_BYTES)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    return lines


def _fitting(lines: list[bytes], num_bytes: int) -> list[bytes]:
    """The first of some lines, those that are whole in so many bytes."""
    ends = accumulate(map(len, lines))
    return [line for line, end in zip(lines, ends, strict=True) if end <= num_bytes]


def broken_line(path: Path) -> int | None:
    """The number, from 1, of the first line that is no log of Optuna's; None if there is none."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                log = json.loads(line)
            except (ValueError, RecursionError):
                # the last one may be at being written
                return number if line.endswith(b"\n") else None
            if not isinstance(log, dict) or log.get("op_code") not in _OPERATIONS:
                return number
    return None


def encode(logs: list[dict[str, Any]]) -> list[bytes]:
    """Logs as lines of the file."""
    return [f"{_to_json(log)}\n".encode() for log in logs]


def parse(lines: list[bytes]) -> Iterable[dict[str, Any]]:
    """The logs of lines, many at once; one by one where the faster parser takes less than JSON."""
    try:
        parsed: list[dict[str, Any]] = from_json(b"[" + b",".join(lines) + b"]")
    except ValueError:
        parsed = []
    return parsed if len(parsed) == len(lines) else map(json.loads, lines)
