"""Labelled texts of a file, row by row, each checked.

Texts and labels are text: `1.10` is no number, and not `1.1`. Where the format has types, a number
that is whole is written without a fraction, so that 1 and 1.0 are one class.

Invariant: a row that is handed out has a text and a label, or says what it lacks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple

from workers.protocol.errors import InvalidInputError, nearest
from workers.protocol.finetune import BUILT_IN_SOURCES, FILE_FORMATS, HUB, DataConfig
from workers.texts import delimited, json_rows, parquet
from workers.texts.text_file import MAX_TEXT, RawRow, TextFile

#: What programs write for a label that is not there; no word of a language.
_MISSING: Final = frozenset(
    {"nan", "NaN", "NAN", "-nan", "<NA>", "NaT", "NULL", "null", r"\N", "#N/A"}
)


class Row(NamedTuple):
    """A text and its class, and where they are."""

    place: str
    """Such as `line 17`."""
    text: str
    label: str
    pair: str | None = None
    """The second text, where pairs are classified."""
    lacks: str | None = None
    """Of a row that cannot be used because something in it is missing: what."""


def is_file(source: str) -> bool:
    """Whether a source is a file, by its name."""
    return source not in BUILT_IN_SOURCES and not source.startswith(HUB)


def read_rows(source: str, config: DataConfig, field: str) -> Iterator[Row]:
    """The rows of a file, each checked; nothing is kept of those that went by.

    Args:
        source: The file.
        config: Its columns, and how it is written.
        field: The setting that names it, for messages, such as `data.source`.

    Raises:
        InvalidInputError: The file, or a row, cannot be used; the message names the file, the
            row and the way out.
    """
    file = TextFile(existing_file(source, field), config, field)
    unit, found = _open(file)
    for number, *values in found:
        yield checked_row(f"{unit} {number}", values, config, f"{field} = {source!r}")


def checked_row(place: str, values: Sequence[Any], config: DataConfig, source: str) -> Row:
    """A row of whatever its columns hold: text, label and, where there is one, second text.

    Raises:
        InvalidInputError: One of them is no text.
    """
    try:
        text, label = _text(values[0], config.text), _label(values[1], config.label)
        pair = None if config.text_pair is None else _text(values[2], config.text_pair)
        return Row(place, text, label, pair)
    except _MissingError as error:
        return Row(place, "", "", None, str(error))
    except _UnusableError as error:
        raise InvalidInputError(f"{source}, {place}: {error}") from None


def existing_file(source: str, field: str) -> Path:
    """The path of a source that is a file.

    Raises:
        InvalidInputError: It is none that can be read, or not here.
    """
    path = Path(source).expanduser()
    if path.suffix.lower() not in FILE_FORMATS:
        raise InvalidInputError(
            f"{field} = {source!r}: files end in {', '.join(FILE_FORMATS)}; built in is"
            f" {', '.join(BUILT_IN_SOURCES)}{nearest(source, BUILT_IN_SOURCES)}; a hub id is"
            " written hub:owner/name"
        )
    try:
        is_there = path.is_file()
    except OSError as error:
        raise InvalidInputError(
            f"{field} = {source!r} cannot be read: {error.strerror or error}; mend the path"
        ) from error
    if not is_there:
        raise InvalidInputError(f"{field} = {source!r}: there is no such file; mend the path")
    return path


def _open(file: TextFile) -> tuple[str, Iterator[RawRow]]:
    """What rows are counted in, and the rows."""
    file_format = FILE_FORMATS[file.path.suffix.lower()]
    if file_format == "csv":
        return "line", delimited.rows(file)
    if file_format == "parquet":
        return "row", parquet.rows(file)
    if json_rows.is_array(file):
        return "row", json_rows.rows_of_array(file)
    return "line", json_rows.rows_of_lines(file)


class _UnusableError(Exception):
    """A value is no text, or no label."""


class _MissingError(Exception):
    """There is no value."""


def _text(value: Any, column: str) -> str:
    text = value if isinstance(value, str) else _plain(value, column)
    if not text or text.isspace():
        raise _MissingError(f"nothing in column {column!r}")
    if len(text) > MAX_TEXT:
        raise _UnusableError(f"a text of {len(text)} characters in {column!r}; shorten it")
    if not text.isascii():
        _check_encodable(text, column)
    return text


def _label(value: Any, column: str) -> str:
    label = (value if isinstance(value, str) else _plain(_whole(value), column)).strip()
    if not label:
        raise _MissingError(f"nothing in column {column!r}")
    if label in _MISSING:
        raise _MissingError(f"{label!r} in column {column!r} stands for a label that is not there")
    if not label.isascii():
        _check_encodable(label, column)
    return label


def _whole(value: Any) -> Any:
    """An integer for a number that is one."""
    is_fraction = isinstance(value, float | Decimal) and math.isfinite(value)
    return int(value) if is_fraction and abs(value) < 2**63 and value == int(value) else value


def _plain(value: Any, column: str) -> str:
    """A value of a typed format as text."""
    if value is None:
        return ""
    if isinstance(value, bool | int | float | Decimal):
        return str(value)
    kind = {"dict": "an object", "list": "a list"}.get(type(value).__name__, type(value).__name__)
    raise _UnusableError(f"{kind} in column {column!r}; make it a text")


def _check_encodable(text: str, column: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _UnusableError(
            f"half a character (a lone surrogate) in column {column!r}; mend the text"
        ) from None
