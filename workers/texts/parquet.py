"""Parquet files, batch by batch, of the columns that count alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from workers.protocol.finetune import DataConfig
from workers.texts.class_names import NO_NAMES, ClassNames
from workers.texts.labels import kind_of, names_classes
from workers.texts.text_file import RawRow, TextFile
from workers.texts.values import UnusableError

_BATCH: Final = 8192


def rows(file: TextFile) -> Iterator[RawRow]:
    """The rows, numbered from 1; categories stand for their values.

    Raises:
        InvalidInputError: The file is damaged or none, or a column holds no text.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file.path) as opened:
            schema = opened.schema_arrow
            file.positions(schema.names)
            names = file.config.columns
            classes = NO_NAMES if file.names else _class_names(schema, file.config)
            for name in names:
                _check_type(file, name, schema.field(name).type)
            number = 0
            for batch in opened.iter_batches(_BATCH, columns=names):
                columns = [_values(batch.column(name)) for name in names]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield RawRow(number, _named(file, number, values, classes))
    except UnicodeDecodeError as error:
        place = f"one of the rows {number + 1} to {number + _BATCH}"
        raise file.refusal("a text that is not UTF-8; write the file anew", place) from error
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        raise file.refusal(f"cannot be read as parquet: {first}; write it anew") from error


def _named(
    file: TextFile, number: int, values: Sequence[Any], classes: ClassNames
) -> Sequence[Any]:
    """A row with the names of its classes in place of their numbers."""
    if not classes:
        return values
    text, label, *others = values
    try:
        return [text, *classes.of_numbers([label]), *others]
    except UnusableError as error:
        raise file.refusal(str(error), f"row {number}") from None


def _class_names(schema: Any, config: DataConfig) -> ClassNames:
    """The names of the class numbers, where the `datasets` library has left them in the file."""
    if not names_classes(config):
        return NO_NAMES
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        feature = about["info"]["features"][config.label]
        return ClassNames(feature.get("feature", feature)["names"])
    except (KeyError, ValueError, TypeError, AttributeError):
        return NO_NAMES


def _check_type(file: TextFile, name: str, kind: Any) -> None:
    import pyarrow as pa

    kinds = {"classes": [file.config.label], "tags": [file.config.text, file.config.label]}
    if name in kinds.get(kind_of(file.config), ()) and _is_list(kind):
        kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise file.refusal(f"the column {name!r} holds {kind}; make it one of strings")


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_one(kind) for is_one in kinds)


def _values(column: Any) -> list[Any]:
    """Plain values; of what is neither text, integer, boolean nor decimal, its text."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_temporal(kind):
        # by Arrow, a float of 32 bits is 1.1, and 2.0 is 2
        column = column.cast(pa.string())
    values: list[Any] = column.to_pylist()
    return values
