"""A file of labelled texts, as a study names it, and how it is refused.

Invariant: a refusal names the file, the line or row, and the way out.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from workers.protocol.errors import InvalidInputError, nearest
from workers.protocol.finetune import DataConfig
from workers.texts.class_names import NO_NAMES, ClassNames
from workers.texts.encodings import encoding_of, unmarked_utf16
from workers.texts.values import MAX_TEXT

#: Characters of one line; bounds what is read at once of a file without line ends.
_MAX_LINE: Final = 4 * MAX_TEXT

_HEAD: Final = 4096


class RawRow(NamedTuple):
    """What a row holds in the columns that count, as the format has it."""

    number: int
    """The line or the row, from 1."""
    values: Sequence[Any]
    """By the order of `DataConfig.columns`."""
    lacks: str | None = None
    """Of a row without one of the columns: what is missing."""


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file, with what the study says about it."""

    path: Path
    config: DataConfig
    field: str
    """The setting that names it, for messages, such as `config.data.source`."""
    names: ClassNames = NO_NAMES
    """Of the classes, where the data set tells them apart from its files."""

    def refusal(self, problem: str, place: str = "") -> InvalidInputError:
        """The error for something in this file."""
        where = f", {place}" if place else ""
        return InvalidInputError(f"{self.field} = {str(self.path)!r}{where}: {problem}")

    def positions(self, columns: Sequence[str]) -> list[int]:
        """Where the columns that are read are, in the order of `DataConfig.columns`.

        Raises:
            InvalidInputError: One is not there, or there twice.
        """
        if self.config.text in self.config.label_columns:
            (_, *labels) = self.config.roles
            raise InvalidInputError(
                f"{self._setting(labels[0][0])} = {self.config.text!r}: that is the column of the"
                " texts; name the one of the classes"
            )
        return [self._position(role, wanted, columns) for role, wanted in self.config.roles]

    def _position(self, role: str, wanted: str, columns: Sequence[str]) -> int:
        count = Counter(columns)[wanted]
        if not count:
            some = [column[:60] for column in columns[:20]]
            shown = ", ".join(some) + (", ..." if len(columns) > len(some) else "")
            raise InvalidInputError(
                f"{self._setting(role)} = {wanted!r}: {self.path.name} has no such column (it has"
                f" {shown or 'none'}){nearest(wanted, columns)}"
            )
        if count > 1:
            raise InvalidInputError(
                f"{self._setting(role)} = {wanted!r}: {self.path.name} has {count} columns of that"
                " name; rename all but one"
            )
        return columns.index(wanted)

    def _setting(self, role: str) -> str:
        return f"{self.field.rpartition('.')[0]}.{role}"

    @contextmanager
    def opened(self) -> Iterator[io.TextIOWrapper]:
        """The file as text, its line ends as they are.

        Raises:
            InvalidInputError: It cannot be read, or is in another encoding.
        """
        try:
            encoding = self._encoding()
            with self.path.open(encoding=encoding, newline="") as stream:
                yield stream
        except UnicodeError as error:
            raise self.refusal(
                f"not {encoding.upper()}: {getattr(error, 'reason', error)}; name the file's own"
                f" encoding in {self._setting('encoding')}, such as cp1252, or save it as UTF-8",
                self._undecodable(encoding),
            ) from error
        except OSError as error:
            raise self.refusal(f"cannot be read: {error.strerror or error}") from error

    def lines(self, stream: io.TextIOWrapper) -> Iterator[str]:
        """The lines, with their ends.

        Raises:
            InvalidInputError: A line is endless, or holds what no text does.
        """
        number = 0
        while line := stream.readline(_MAX_LINE):
            number += 1
            if len(line) == _MAX_LINE:
                problem = f"longer than {_MAX_LINE} characters; is it a text file?"
                raise self.refusal(problem, f"line {number}")
            if "\0" in line:
                raise self.refusal("a NUL byte; the file is damaged, mend it", f"line {number}")
            yield line

    def _encoding(self) -> str:
        with self.path.open("rb") as file:
            head = file.read(_HEAD)
        found = encoding_of(head)
        if found == "utf-8" and self.config.encoding != "auto":
            return self.config.encoding
        if found == "utf-8" and (other := unmarked_utf16(head)):
            raise self.refusal(
                f"it looks like {other.upper()} without a byte-order mark; set"
                f" {self._setting('encoding')}: {other}"
            )
        return found

    def _undecodable(self, encoding: str) -> str:
        """The first line that cannot be decoded, where lines can be told by their bytes."""
        if encoding.startswith(("utf-16", "utf-32")):
            return ""
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    line.decode(encoding)
                except UnicodeError:
                    return f"line {number}"
        return ""
