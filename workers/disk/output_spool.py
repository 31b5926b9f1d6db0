"""The spool of a pool process: what descriptors wrote, and marks that say whose each part is.

Whoever writes to the descriptors writes into the spool itself, so that a process that is killed
leaves its last words; who reads it, in that process or after it, finds all in the file.

Invariant: a mark is told from what is printed by a random word in the spool's name; what was read
is noted beside it, so that who goes on begins there.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from workers.coordination.trial_output import Attempt
from workers.disk.room import give_back
from workers.passwords import whole

_NAME: Final = re.compile(r"output-([0-9a-f]{16})")

#: How much is taken at once.
_CHUNK: Final = 2**18

#: A line that is longer than this is taken in parts.
_LONGEST_LINE: Final = 8192

#: Of what nobody has read: beyond this the oldest is passed over.
_MOST_UNREAD: Final = 32 * 2**20

#: Room for the note of how far it was read: a study's name is the longest in it.
_STATE_BYTES: Final = 4096

_NOBODY: Final = b"-"
_LOGGED: Final = b"["
_PRINTED: Final = b"]"

#: No mark is longer: a study's name is the longest in it.
_LONGEST_MARK: Final = 1024


class Marks:
    """How the marks of a spool are written."""

    def __init__(self, word: str) -> None:
        self.begin: Final = b"\x1e" + word.encode()
        self._nobody: Final = b"%b%b\n" % (self.begin, _NOBODY)
        #: one of which a full disk took a part has no end, and tells nothing
        self.found: Final = re.compile(
            re.escape(self.begin) + rb"(?:([^\n\x1e]*)\n|[^\n\x1e]*(?=\x1e))"
        )

    def of(self, attempt: Attempt | None) -> bytes:
        """What follows is printed by an attempt, or by none."""
        if attempt is None:
            return self._nobody
        study, trial, number, token, generation = attempt  # none of them holds a blank
        text = f"{trial} {number} {token} {study} {generation or ''}"
        return b"%b%b\n" % (self.begin, text.encode())

    def attempt_in(self, content: bytes | None, before: Attempt | None) -> Attempt | None:
        """Whose what follows a mark is; by a damaged one, still that of whom it was before."""
        if content == _NOBODY:
            return None
        with suppress(ValueError):
            trial, number, token, study, generation = (content or b"").decode().split(" ")
            return Attempt(study, int(trial), int(number), int(token), generation or None)
        return before

    def begun_in(self, content: bytes) -> int:
        """Where a mark begins of which the rest may be yet to come; the length, if none does."""
        place = content.rfind(b"\x1e", -_LONGEST_MARK)
        last = content[place:]
        is_one = self.begin.startswith(last[: len(self.begin)]) and b"\n" not in last
        return place if place >= 0 and is_one else len(content)

    def logged(self, line: str) -> bytes:
        """A line that is in the worker's log already, in a form of its own."""
        text = line.encode("utf-8", "backslashreplace")
        return b"%b%b\n%b\n%b%b\n" % (self.begin, _LOGGED, text, self.begin, _PRINTED)


class Piece(NamedTuple):
    """Something that was printed."""

    attempt: Attempt | None
    content: bytes
    is_logged: bool = False
    is_last: bool = False
    """Whether its attempt prints no more."""


class OutputSpool:
    """Reads a spool.

    Args:
        path: What `new_spool` named.
    """

    def __init__(self, path: Path) -> None:
        match = _NAME.fullmatch(path.name)
        assert match is not None, path  # noqa: S101 - whoever names one, names it so
        self.path = path
        self.marks = Marks(match[1])
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._state = os.open(
            path.with_suffix(".read"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        if os.fstat(self._state).st_size < _STATE_BYTES:
            with suppress(OSError):  # room for the note, for when there is none left
                os.pwrite(self._state, b" " * _STATE_BYTES, 0)
        self._place = 0
        self._attempt: Attempt | None = None
        self._is_logged = False
        #: bytes that the attempt at hand has printed, as whoever keeps them counts
        self.printed = 0
        #: of these, the bytes that its file lacks: the disk took no more
        self.lost = 0
        self._recall()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
        os.close(self._state)

    def chunks(self, *, is_last: bool = False) -> Iterator[list[Piece]]:
        """What was printed since the last look, to the end of the last whole line.

        No password that this process knows lies in two of them.

        Args:
            is_last: Nobody prints any more: to the very end.
        """
        yield from self._pass_over()
        is_end = False
        while not is_end:
            content = os.pread(self._file, _CHUNK, self._place)
            taken = self._taken(content, is_all=is_last and len(content) < _CHUNK)
            is_end = len(content) < _CHUNK or not taken
            pieces = list(self._parse(content[:taken]))
            self._place += taken
            if is_end and is_last and self._attempt is not None:
                pieces.append(Piece(self._attempt, b"", is_last=True))
                self._attempt = None
            if pieces:
                yield pieces

    def note(self) -> None:
        """Note how far it was read, and give the room of that back."""
        state = json.dumps([self._place, self._attempt, self._is_logged, self.printed, self.lost])
        os.pwrite(self._state, state.encode().ljust(_STATE_BYTES), 0)
        give_back(self._file, self._place)

    def _recall(self) -> None:
        with suppress(ValueError, TypeError):
            found: Any = json.loads(os.pread(self._state, _STATE_BYTES, 0))
            self._place, attempt, self._is_logged, self.printed, *lost = found
            self.lost = sum(lost)  # the release before noted none
            self._attempt = None if attempt is None else Attempt(*attempt)

    def _taken(self, content: bytes, *, is_all: bool = False) -> int:
        """How much of what was read can be taken: no part of a mark, a line or a password."""
        if is_all:
            return len(content)
        taken = self._to_line(content)
        # of one that fills a chunk, whatever it is, the end is not waited for
        return whole(content[:taken]) or (taken if len(content) == _CHUNK else 0)

    def _to_line(self, content: bytes) -> int:
        """Where what can be taken ends: before a mark, after a line, between characters."""
        if (mark := self.marks.begun_in(content)) < len(content):
            return mark
        line = max(content.rfind(b"\n"), content.rfind(b"\r")) + 1
        return line if len(content) - line < _LONGEST_LINE else len(content)

    def _parse(self, content: bytes) -> Iterator[Piece]:
        place = 0
        for mark in self.marks.found.finditer(content):
            yield from self._piece(content[place : mark.start()])
            place = mark.end()
            if mark[1] in {_LOGGED, _PRINTED}:
                self._is_logged = mark[1] == _LOGGED
                continue
            following = self.marks.attempt_in(mark[1], self._attempt)
            if self._attempt not in {None, following}:
                yield Piece(self._attempt, b"", is_last=True)
            self._attempt, self._is_logged = following, False
        yield from self._piece(content[place:])

    def _piece(self, content: bytes) -> Iterator[Piece]:
        if content:
            yield Piece(self._attempt, content, self._is_logged)

    def _pass_over(self) -> Iterator[list[Piece]]:
        """Leave out the oldest, where somebody prints faster than anybody reads.

        In its place each attempt is told how much of it was left out, and that it prints no more
        where that is so: whoever counts what an attempt printed begins anew with the next one.
        """
        surplus = os.fstat(self._file).st_size - self._place - _MOST_UNREAD
        left_out = 0
        while surplus > 0 and (content := self._oldest(surplus)):
            pieces: list[Piece] = []
            for piece in self._parse(content):
                left_out += len(piece.content) if piece.attempt is not None else 0
                if piece.is_last:
                    pieces += [*_told(piece.attempt, left_out), piece]
                    left_out = 0
            self._place += len(content)
            surplus -= len(content)
            if pieces:
                yield pieces
        if told := _told(self._attempt, left_out):
            yield told

    def _oldest(self, most: int) -> bytes:
        """What is passed over next: to where an attempt begins, so that its part is told whole."""
        content = os.pread(self._file, min(most, _CHUNK), self._place)
        content = content[: self._taken(content)]
        begins = [
            mark.end()
            for mark in self.marks.found.finditer(content)
            if mark[1] not in {None, _LOGGED, _PRINTED}
        ]
        return content[: begins[-1]] if begins else content


def _told(attempt: Attempt | None, left_out: int) -> list[Piece]:
    """What stands in the place of what was left out of an attempt, if anything was."""
    if attempt is None or not left_out:
        return []
    return [Piece(attempt, f"\n[trialfleet: {left_out} bytes left out]\n".encode())]


def new_spool(directory: Path) -> tuple[Path, int]:
    """Make a spool in a directory: its path, and a descriptor that writes to its end.

    Raises:
        OSError: The disk takes no more.
    """
    path = directory / f"output-{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return path, os.open(path, flags, 0o600)


def spools_in(directory: Path) -> list[Path]:
    """The spools that a process left in its scratch directory."""
    return [path for path in directory.glob("output-*") if _NAME.fullmatch(path.name)]
