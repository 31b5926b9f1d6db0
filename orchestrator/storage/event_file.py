"""The file of a study's events, or of the fleet's, for good: one line an event, oldest first.

It says by itself how far a stream was read: its last line has the last event's place there. It is
not brought to disk at each write: what a power cut takes of it, Redis mostly still has.

Invariant: what is added to it follows what is there, so that no event stands in it twice; a line
that was torn by a kill or a full disk is cut off before anything is added.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Final

from workers.coordination.event_stream import BEGINNING, Told
from workers.disk.file_locks import LocksMissingError, lock_file
from workers.protocol.events import decode, place_of

#: The name of the file; of those before it, `events.1.jsonl` is the latest.
NAME: Final = "events.jsonl"

#: When the next file is begun, and how many before it are kept: 128 MB of a study in all.
MAX_BYTES: Final = 32 * 2**20
NUM_EARLIER: Final = 3

#: How much of a file's end is looked through for its last line.
_TAIL_BYTES: Final = 64 * 1024

#: How much is read at once.
_BLOCK_BYTES: Final = 256 * 1024


def events_file(home: Path, study: str | None = None) -> Path:
    """Where the events of a study are, or, without one, those of the fleet's processes."""
    return home / NAME if study is None else home / "studies" / study / NAME


@dataclass
class Mark:
    """How far a reader got: in which file, by its number on the disk, and to which byte."""

    inode: int = 0
    offset: int = 0
    last: bytes = b""
    """The line before it: another file may get the number of one that is no more."""

    def is_in(self, file: BinaryIO) -> bool:
        """Whether a file of this number is the one that was read."""
        file.seek(max(0, self.offset - len(self.last)))
        return file.read(len(self.last)) == self.last


class EventFile:
    """Adds to the events of one study, or of the fleet, and reads them."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        #: the file, as this process left it, and the place of its last event
        self._left: tuple[int, int, str] | None = None

    def place(self) -> str:
        """The place in the stream of the last event that is in it."""
        if self._left is None or self._left[:2] != self._state():
            found = filter(None, map(_last_place, self._newest_first()))
            self._left = (*self._state(), next(found, BEGINNING))
        return self._left[2]

    def add(self, told: Sequence[Told]) -> bool:
        """Add events; False while another process does.

        Args:
            told: In order; those that are in it already are left out.

        Raises:
            OSError: The disk takes no more, or the file cannot be written.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = lock_file(self._path, create=True)
        except LocksMissingError:
            self._add(told)
            return True
        if lock is None:
            return False
        with lock:
            self._add(told)
        return True

    def lines(self, mark: Mark | None = None, holding: Sequence[bytes] = ()) -> Iterator[bytes]:
        """Its whole lines, the oldest first.

        Args:
            mark: Lines behind it are read, and it is moved on. Where its file is no more, all are.
            holding: Blocks of lines that hold none of these are passed over, others come whole.
        """
        mark = mark or Mark()
        with ExitStack() as opened:
            for inode, file in self._from(mark, opened):
                if inode != mark.inode or not mark.is_in(file):
                    mark.inode, mark.offset, mark.last = inode, 0, b""
                file.seek(mark.offset)
                for block in _blocks(file):
                    mark.offset += len(block)
                    mark.last = block[block.rfind(b"\n", 0, -1) + 1 :]
                    if not holding or any(each in block for each in holding):
                        yield from io.BytesIO(block)

    def _from(self, mark: Mark, opened: ExitStack) -> list[tuple[int, BinaryIO]]:
        """The files to be read on, the oldest first."""
        found: dict[int, BinaryIO] = {}
        for path in self._newest_first():  # one that is put aside meanwhile comes again, not never
            with suppress(FileNotFoundError):
                file = opened.enter_context(path.open("rb"))
                inode = os.fstat(file.fileno()).st_ino
                found.setdefault(inode, file)
                if inode == mark.inode and mark.is_in(file):
                    break
        return list(reversed(found.items()))

    def _add(self, told: Sequence[Told]) -> None:
        place = place_of(self.place())
        text = "".join(each.line for each in told if place_of(each.id) > place)
        if not text:
            return
        with self._path.open("r+b") as file:
            _cut_torn_line(file)
            file.write(text.encode("utf-8", "backslashreplace"))
        if self._path.stat().st_size >= self._max_bytes:
            self._begin_next()
        self._left = (*self._state(), told[-1].id)

    def _begin_next(self) -> None:
        for number in range(NUM_EARLIER, 0, -1):
            source = self._earlier(number - 1)
            if source.exists():
                source.replace(self._earlier(number))

    def _newest_first(self) -> list[Path]:
        return [self._earlier(number) for number in range(NUM_EARLIER + 1)]

    def _earlier(self, number: int) -> Path:
        return self._path.with_name(f"events.{number}.jsonl") if number else self._path

    def _state(self) -> tuple[int, int]:
        """Which file it is, and how long: another process may have added to it."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_ino, found.st_size


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    """The rest of a file in blocks of whole lines; what is torn at its end is left."""
    held = b""
    while read := file.read(_BLOCK_BYTES):
        whole, newline, held = (held + read).rpartition(b"\n")
        if newline:
            yield whole + newline


def _last_place(path: Path) -> str | None:
    """The place of the last event of a file, if there is one."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    return next((event.id for line in reversed(lines) if (event := decode(line))), None)


def _cut_torn_line(file: IO[bytes]) -> None:
    """Cut off what follows the last whole line, and be at the end."""
    end = file.seek(0, os.SEEK_END)
    while end:
        begin = max(0, end - _TAIL_BYTES)
        file.seek(begin)
        newline = file.read(end - begin).rfind(b"\n")
        end = begin + newline + 1 if newline >= 0 else begin
        if newline >= 0:
            break
    file.truncate(end)
    file.seek(end)
