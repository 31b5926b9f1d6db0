"""What the label columns of a row say, by the kind of label that the study's task learns.

| kind | a row says | as |
|---|---|---|
| `class` | one of several classes | its name |
| `number` | a number | a float |
| `classes` | any number of classes, none included | their names, ascending, each once |
| `tags` | the class of each word, in their order | their names, as many as words |
| `none` | nothing: the text itself is learned | no names |

Invariant: a label that is handed out is whole; what is missing, or none of its kind, is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from workers.protocol.finetune import DataConfig
from workers.protocol.tasks import TASKS, LabelKind
from workers.texts.values import MissingError, UnusableError, label_of, label_or_blank

#: A class, a number, or classes.
Label = str | float | tuple[str, ...]

#: As computers write numbers; no `1_000`, no `1,5`, no `inf`.
_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)

#: Targets are trained in float32, and squares of errors added up.
_LARGEST: Final = 1e18

#: A list as Python, NumPy and JSON write one to files that have none; in brackets, what it holds.
_LIST: Final = re.compile(r"\[([^\[\]]*)\]")

#: How a column of its own says whether its class applies.
_APPLIES: Final = {"1": True, "true": True, "0": False, "false": False}


def kind_of(config: DataConfig) -> LabelKind:
    """The kind of label that a data set's task learns."""
    return TASKS[config.task].labels


def names_classes(config: DataConfig) -> bool:
    """Whether the column of the labels holds classes, whose names a data set may tell."""
    return config.labels is None and kind_of(config) in {"class", "classes", "tags"}


def read_label(values: Sequence[Any], config: DataConfig) -> Label:
    """The label of a row.

    Args:
        values: What the label columns hold, in their order.
        config: The data set.

    Raises:
        MissingError: There is none.
        UnusableError: It is none of the task's kind.
    """
    return _READERS[kind_of(config)](values, config)


def is_number(text: str) -> bool:
    """Whether a text is a number as `number` reads it."""
    return _NUMBER.fullmatch(text) is not None


def names_in(label: Label) -> tuple[str, ...]:
    """The classes that a label names; of a number, none."""
    if isinstance(label, str):
        return (label,)
    return label if isinstance(label, tuple) else ()


def _read_class(values: Sequence[Any], config: DataConfig) -> Label:
    return label_of(values[0], config.label)


def _read_number(values: Sequence[Any], config: DataConfig) -> Label:
    text = label_of(values[0], config.label)
    if not is_number(text):
        raise UnusableError(
            f"{text[:40]!r} in column {config.label!r} is no number; write it as 3, -0.5 or 1e-3"
        )
    if abs(number := float(text)) > _LARGEST:
        raise UnusableError(
            f"{text[:40]} in column {config.label!r} is too large for float32, in which squares of"
            " errors are added up; scale the numbers"
        )
    return number


def _read_classes(values: Sequence[Any], config: DataConfig) -> Label:
    if config.labels is not None:
        return _read_flags(values, config.labels)
    (value,) = values
    if value is None:
        raise MissingError(f"nothing in column {config.label!r}")
    if isinstance(value, list):
        return tuple(sorted({label_of(each, config.label) for each in value}))
    text = label_or_blank(value, config.label)
    _refuse_list(
        text, config, between=config.label_separator, way_out="no brackets and quotes around them"
    )
    return tuple(sorted({each.strip() for each in text.split(config.label_separator)} - {""}))


def _read_tags(values: Sequence[Any], config: DataConfig) -> Label:
    (value,) = values
    if value is None:
        raise MissingError(f"nothing in column {config.label!r}")
    if isinstance(value, list):
        each = value
    else:
        text = label_of(value, config.label)
        _refuse_list(text, config, between=" ", way_out="blanks between them, and nothing else")
        each = text.split()
    if not each:
        raise MissingError(f"no class in column {config.label!r}")
    return tuple(label_of(tag, config.label) for tag in each)


def _refuse_list(text: str, config: DataConfig, *, between: str, way_out: str) -> None:
    """Refuse a list that was written as text: its classes would have brackets and quotes."""
    found = _LIST.fullmatch(text)
    if found is None:
        return
    inner = found[1].strip()
    if not inner or inner[0] in "'\"" or between in inner:
        raise UnusableError(
            f"{text[:40]!r} in column {config.label!r} is a list that was written as text; write"
            f" classes with {way_out}, or lists to a .jsonl or .parquet file"
        )


def _read_flags(values: Sequence[Any], columns: Sequence[str]) -> Label:
    """The classes that apply, of columns that each say so of one."""
    found = []
    for value, column in zip(values, columns, strict=True):
        text = label_of(value, column)
        if (applies := _APPLIES.get(text.lower())) is None:
            raise UnusableError(
                f"{text[:40]!r} in column {column!r}: of several label columns, each holds 0 or 1"
            )
        if applies:
            found.append(column)
    return tuple(sorted(found))


_READERS: Final[Mapping[LabelKind, Callable[[Sequence[Any], DataConfig], Label]]] = {
    "class": _read_class,
    "number": _read_number,
    "classes": _read_classes,
    "tags": _read_tags,
    "none": lambda _values, _config: (),
}
