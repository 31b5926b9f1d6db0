"""Labelled texts of a file, row by row, each checked.

Invariant: a row that is handed out has a text and a label, or says what it lacks.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from workers.protocol.errors import InvalidInputError, WorkerLacksError, nearest
from workers.protocol.finetune import BUILT_IN_SOURCES, FILE_FORMATS, HUB, DataConfig
from workers.protocol.tasks import DEFAULT_TASK
from workers.texts import delimited, json_rows, parquet
from workers.texts.class_names import NO_NAMES, ClassNames, has_text
from workers.texts.labels import Label, kind_of, names_in, read_label
from workers.texts.text_file import RawRow, TextFile
from workers.texts.values import MissingError, UnusableError, text_of, words_of


class Row(NamedTuple):
    """A text and its label, and where they are."""

    place: str
    """Such as `line 17`."""
    text: str
    label: Label
    pair: str | None = None
    """The second text, where pairs are classified."""
    lacks: str | None = None
    """Of a row that cannot be used because something in it is missing: what."""
    is_written: bool = False
    """Of data whose classes have numbers: whether the label was text, so that it may be one."""


def is_file(source: str) -> bool:
    """Whether a source is a file, by its name."""
    return source not in BUILT_IN_SOURCES and not source.startswith(HUB)


def check_built_in(config: DataConfig, field: str) -> None:
    """Refuse a built-in source for a task that it has no labels for.

    Raises:
        InvalidInputError: The message names the source and the way out.
    """
    if config.task != DEFAULT_TASK and kind_of(config) != "none":
        raise InvalidInputError(
            f"{field} = {config.source!r}: its texts have one class each, which is"
            f" task: {DEFAULT_TASK}; for task: {config.task}, name a file or hub:owner/name"
        )


def read_rows(
    source: str, config: DataConfig, field: str, names: ClassNames = NO_NAMES
) -> Iterator[Row]:
    """The rows of a file, each checked; nothing is kept of those that went by.

    Args:
        source: The file.
        config: Its columns, and how it is written.
        field: The setting that names it, for messages, such as `data.source`.
        names: Of the classes, where rows may hold their numbers.

    Raises:
        InvalidInputError: The file, or a row, cannot be used; the message names the file, the
            row and the way out.
    """
    file = TextFile(existing_file(source, field), config, field, names)
    unit, found = _open(file)
    for number, values, lacks in found:
        place = f"{unit} {number}"
        if lacks is None:
            yield checked_row(place, values, config, f"{field} = {source!r}", names)
        else:
            yield Row(place, "", "", None, lacks)


def checked_row(
    place: str,
    values: Sequence[Any],
    config: DataConfig,
    source: str,
    names: ClassNames = NO_NAMES,
) -> Row:
    """A row of whatever its columns hold, in the order of `DataConfig.columns`.

    Raises:
        InvalidInputError: One of them is no text, or no label of the task's kind.
    """
    end = 1 + len(config.label_columns)
    try:
        is_tagged = kind_of(config) == "tags"
        text = (words_of if is_tagged else text_of)(values[0], config.text)
        labels = values[1:end]
        label = read_label(names.of_numbers(labels), config)
        if is_tagged:
            _check_tags(text, label, config)
        pair = None if config.text_pair is None else text_of(values[end], config.text_pair)
        is_written = bool(names) and has_text(labels)
        return Row(place, text, label, pair, is_written=is_written)
    except MissingError as error:
        return Row(place, "", "", None, str(error))
    except UnusableError as error:
        raise InvalidInputError(f"{source}, {place}: {error}") from None


def _check_tags(text: str, label: Label, config: DataConfig) -> None:
    words, tags = len(text.split(" ")), len(names_in(label))
    if words != tags:
        raise UnusableError(
            f"{words} words in column {config.text!r}, and {tags} classes in {config.label!r}; give"
            " each word one"
        )


def existing_file(source: str, field: str) -> Path:
    """The path of a source that is a file.

    Raises:
        InvalidInputError: It is none that can be read.
        WorkerLacksError: It is not here, where it may be on other hosts.
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
        raise WorkerLacksError(
            f"{field} = {source!r} cannot be read: {error.strerror or error}; mend the path"
        ) from error
    if not is_there:
        raise WorkerLacksError(f"{field} = {source!r}: there is no such file; mend the path")
    if not os.access(path, os.R_OK):
        raise WorkerLacksError(
            f"{field} = {source!r} cannot be read: {os.strerror(errno.EACCES)}; mend its rights"
        )
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
