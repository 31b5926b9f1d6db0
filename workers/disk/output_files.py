"""What an attempt printed, as a file for people: bounded, with a line in place of what was cut.

Layout: `<home>/studies/<study>/trials/<number>/output/<generation>/<attempt>-<token>/output.log`.
What an earlier study of the name printed lies in another folder.

Invariant: the file is what was printed, or its first and last parts and how much lay between.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from workers.disk import durable
from workers.disk.store_layout import generation_folder

#: Bytes at which the middle of a file is cut out, and what stays at each end of it then.
MOST_BYTES: Final = 16 * 2**20

_CUT: Final = re.compile(rb"\n\[trialfleet: (\d+) bytes cut\]\n")

#: Around the end of what stays at the beginning of a file: where its cut is noted.
_LONGEST_NOTE: Final = 64
_BEFORE_NOTE: Final = 4

_NAME: Final = re.compile(r"(\d+)-(\d+)")


class OutputFile:
    """The file of one attempt.

    Args:
        path: Where it lies; its folder is made when something is written.
        most_bytes: What it may take.
    """

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES) -> None:
        self.path = path
        self._most = most_bytes
        self._end_bytes = most_bytes // 4

    def write(self, begin: int, text: str) -> None:
        """Write what was printed from a place on; what the file has of it, it has once.

        Args:
            begin: How many bytes were printed before it. Where the file has fewer, it follows
                on them.
            text: What was printed.

        Raises:
            OSError: The disk takes no more.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            known = max(0, self._end(file, size) - begin)
            size += file.write(text.encode()[known:])
        if size > self._most:
            self._cut()

    def end(self) -> int:
        """How many bytes were printed in all, as far as the file has them; 0 without one."""
        try:
            with self.path.open("rb") as file:
                return self._end(file, file.seek(0, os.SEEK_END))
        except FileNotFoundError:
            return 0

    def _end(self, file: BinaryIO, size: int) -> int:
        if size < self._end_bytes:
            return size
        file.seek(max(0, self._end_bytes - _BEFORE_NOTE))
        note = _CUT.search(file.read(_BEFORE_NOTE + _LONGEST_NOTE))
        return size if note is None else size + int(note[1]) - len(note[0])

    def read_end(self, most_bytes: int) -> tuple[str, int, bool]:
        """The last of the text, how many bytes were printed in all, and whether it is all there is.

        Raises:
            FileNotFoundError: There is none.
        """
        with self.path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            end = self._end(file, size)
            begin = max(0, size - most_bytes)
            file.seek(begin)
            content = file.read(size - begin)
        torn = 0
        while begin and torn < len(content) and _is_inside_character(content[torn]):
            torn += 1
        return content[torn:].decode(errors="replace"), end, not begin

    def read(self) -> tuple[str, int]:
        """The text, and how many bytes were printed in all.

        Raises:
            FileNotFoundError: There is none.
        """
        content = self.path.read_bytes()
        note = self._note(content)
        cut = 0 if note is None else int(note[1]) - len(note[0])
        return content.decode(errors="replace"), len(content) + cut

    def _note(self, content: bytes) -> re.Match[bytes] | None:
        first = max(0, self._end_bytes - _BEFORE_NOTE)
        return _CUT.search(content, first, self._end_bytes + _LONGEST_NOTE)

    def _cut(self) -> None:
        """Take the middle out, at the borders of characters."""
        content = self.path.read_bytes()
        note = self._note(content)
        begin = self._end_bytes if note is None else note.start()
        while note is None and begin and _is_inside_character(content[begin]):
            begin -= 1
        last = len(content) - self._end_bytes
        while last < len(content) and _is_inside_character(content[last]):
            last += 1
        before = 0 if note is None else int(note[1])
        cut = before + last - (begin if note is None else note.end())
        told = f"\n[trialfleet: {cut} bytes cut]\n".encode()
        durable.write_whole(self.path, content[:begin] + told + content[last:])


class FoundOutput(NamedTuple):
    """The file of an attempt that printed something."""

    attempt: int
    token: int
    file: OutputFile


def output_file(
    home: Path, study: str, trial: int, attempt: int, token: int, generation: str | None = None
) -> OutputFile:
    """The file of an attempt."""
    folder = output_folder(home, study, trial, attempt, token, generation)
    return OutputFile(folder / "output.log")


def output_folder(
    home: Path, study: str, trial: int, attempt: int, token: int, generation: str | None = None
) -> Path:
    """The folder of an attempt's file, which goes to the store as a whole."""
    return _trial_folder(home, study, trial, generation) / f"{attempt}-{token}"


def outputs_of(
    home: Path, study: str, trial: int, generation: str | None = None
) -> Iterator[FoundOutput]:
    """The files of a trial's attempts in a home, in their order."""
    yield from outputs_in(_trial_folder(home, study, trial, generation))


def outputs_in(folder: Path) -> Iterator[FoundOutput]:
    """The files of attempts below a folder, in their order."""
    found = []
    for path in folder.glob("*/output.log"):
        match = _NAME.fullmatch(path.parent.name)
        if match is not None:
            found.append(FoundOutput(int(match[1]), int(match[2]), OutputFile(path)))
    yield from sorted(found, key=lambda each: each.token)


def _trial_folder(home: Path, study: str, trial: int, generation: str | None) -> Path:
    folder = home / "studies" / study / "trials" / str(trial) / "output"
    return folder / generation_folder(generation)


def _is_inside_character(byte: int) -> bool:
    return 0x80 <= byte <= 0xBF
