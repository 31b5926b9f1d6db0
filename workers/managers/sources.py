"""Labelled texts, from a built-in set, a file or a hub id: read whole, checked row by row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

from workers.managers.cldr import language_id_texts
from workers.protocol.errors import InvalidInputError
from workers.protocol.finetune import BUILT_IN_SOURCES, FILE_FORMATS, DataConfig

_HUB: Final = "hub:"


class LabelledTexts(NamedTuple):
    """Texts and the class of each, as text; equally long."""

    texts: list[str]
    labels: list[str]


def read_source(source: str, config: DataConfig) -> LabelledTexts:
    """Read all rows of a source.

    Raises:
        InvalidInputError: The source, one of its columns or the value of a row is missing.
    """
    if source in BUILT_IN_SOURCES:
        return LabelledTexts(*language_id_texts())
    table = _open(source)
    for column in (config.text, config.label):
        if column not in table.column_names:
            raise InvalidInputError(
                f"data.source = {source!r} has no column {column!r}; it has"
                f" {', '.join(table.column_names)}"
            )
    texts = _column(table, config.text, source)
    return LabelledTexts(texts, _column(table, config.label, source))


def fingerprint(source: str) -> str:
    """Changes when the content of a source does."""
    if source in BUILT_IN_SOURCES:
        return f"babel {version('babel')}"
    if source.startswith(_HUB):
        return source
    with _existing(source).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changed_at(source: str) -> int:
    """When a file was last written, in ns; 0 for what is no file. Cheaper than a fingerprint."""
    is_file = source not in BUILT_IN_SOURCES and not source.startswith(_HUB)
    return _existing(source).stat().st_mtime_ns if is_file else 0


def _open(source: str) -> Any:
    import datasets

    datasets.disable_progress_bars()
    if source.startswith(_HUB):
        return datasets.load_dataset(source.removeprefix(_HUB), split="train")
    path = _existing(source)
    file_format = FILE_FORMATS.get(path.suffix.lower())
    if file_format is None:
        raise InvalidInputError(
            f"data.source = {source!r}: files end in {', '.join(FILE_FORMATS)}; built in are"
            f" {', '.join(BUILT_IN_SOURCES)}; a hub id is written hub:owner/name"
        )
    options: dict[str, Any] = {}
    if file_format == "csv":
        # "NA" and "null" are texts like any other
        options = {"keep_default_na": False, "sep": "\t" if path.suffix == ".tsv" else ","}
    try:
        return datasets.load_dataset(file_format, data_files=str(path), split="train", **options)
    except datasets.exceptions.DatasetGenerationError as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise InvalidInputError(f"data.source = {source!r} is no {file_format}: {cause}") from error


def _existing(source: str) -> Path:
    path = Path(source).expanduser()
    if not path.is_file():
        raise InvalidInputError(
            f"data.source = {source!r}: there is no such file on this host; built in are"
            f" {', '.join(BUILT_IN_SOURCES)}; a hub id is written hub:owner/name"
        )
    return path


def _column(table: Any, name: str, source: str) -> list[str]:
    values: Sequence[Any] = table[name][:]
    for row, value in enumerate(values):
        if value is None or value == "":
            raise InvalidInputError(
                f"data.source = {source!r}: row {row} has nothing in column {name!r};"
                " fill it in or leave the row out"
            )
    return [str(value) for value in values]
