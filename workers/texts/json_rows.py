"""JSON files: one object a line, or one array of objects.

Invariant: numbers keep their spelling, and no key counts twice; an array is read piece by piece.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Final

from workers.protocol.errors import nearest
from workers.texts.text_file import RawRow, TextFile
from workers.texts.values import MAX_TEXT

_CHUNK: Final = 2**20

_FORM: Final = "write one object a line, or one array of objects"


def is_array(file: TextFile) -> bool:
    """Whether the file holds one array, by its first character."""
    with file.opened() as stream:
        while character := stream.read(1):
            if not character.isspace():
                return character == "["
    return False


def rows_of_lines(file: TextFile) -> Iterator[RawRow]:
    """The objects of a file that has one a line, numbered by line; blank lines are left out."""
    with file.opened() as stream:
        columns = _Columns(file, "line")
        for number, line in enumerate(file.lines(stream), 1):
            if not line.strip():
                continue
            try:
                value = _DECODER.decode(line)
            except (ValueError, RecursionError) as error:
                raise file.refusal(_explain(error), f"line {number}") from error
            yield columns.row(number, value)


def rows_of_array(file: TextFile) -> Iterator[RawRow]:
    """The objects of a file that holds one array, numbered from 1."""
    with file.opened() as stream:
        columns = _Columns(file, "row")
        for number, value in enumerate(_elements(file, stream), 1):
            yield columns.row(number, value)


class _Columns:
    """Takes the columns that count out of objects; the first object tells which there are."""

    def __init__(self, file: TextFile, unit: str) -> None:
        self._file = file
        self._unit = unit
        self._is_first = True

    def row(self, number: int, value: Any) -> RawRow:
        config = self._file.config
        if not isinstance(value, dict):
            problem = f"{json.dumps(value, default=str)[:60]} is no object; {_FORM}"
            raise self._file.refusal(problem, f"{self._unit} {number}")
        if self._is_first:
            self._file.positions(list(value))
            self._is_first = False
        for column in config.columns:
            if column not in value:
                return RawRow(number, (), f"there is no {column!r}{nearest(column, value)}")
        return RawRow(number, [value[column] for column in config.columns])


def _elements(file: TextFile, stream: io.TextIOWrapper) -> Iterator[Any]:
    """The elements of an array, which is never held whole."""
    buffer = _Buffer(stream)
    buffer.take("[")
    number = 0
    while not buffer.take("]"):
        number += 1
        if number > 1 and not buffer.take(","):
            raise file.refusal("the array goes on without a comma; mend it", f"row {number}")
        try:
            yield buffer.value()
        except (ValueError, RecursionError) as error:
            raise file.refusal(_explain(error), f"row {number}") from error
    if buffer.peek():
        raise file.refusal(f"it goes on behind its array; {_FORM}")


class _Buffer:
    """A window on a stream of JSON, which grows for as long as a value does not end in it."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        self._stream = stream
        self._text = ""
        self._position = 0

    def peek(self) -> str:
        """The next character that is no blank; nothing at the end."""
        while True:
            while self._position < len(self._text):
                if not self._text[self._position].isspace():
                    return self._text[self._position]
                self._position += 1
            if not self._grow():
                return ""

    def take(self, character: str) -> bool:
        """Go over a character, if it is the next one."""
        is_next = self.peek() == character
        self._position += is_next
        return is_next

    def value(self) -> Any:
        """The next value.

        Raises:
            ValueError, RecursionError: It is none, or longer than a text may be.
        """
        self.peek()
        while True:
            try:
                value, self._position = _DECODER.raw_decode(self._text, self._position)
                return value
            except json.JSONDecodeError:
                if len(self._text) - self._position > 2 * MAX_TEXT or not self._grow():
                    raise

    def _grow(self) -> bool:
        left = self._text[self._position :]
        # by half of what is there, so that a long value is not tried anew for each chunk
        more = self._stream.read(max(_CHUNK, len(left)))
        self._text, self._position = left + more, 0
        return bool(more)


class _RepeatedKeyError(ValueError):
    """An object has a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _RepeatedKeyError(f"the key {twice!r} comes twice; leave one out")
    return found


_DECODER: Final = json.JSONDecoder(parse_float=Decimal, object_pairs_hook=_object)


def _explain(error: Exception) -> str:
    if isinstance(error, _RepeatedKeyError):
        return str(error)
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON ({error.msg}); {_FORM}"
    return f"no JSON that can be read ({error}); {_FORM}"
