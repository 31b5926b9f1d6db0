"""What a column of a row holds, as text, whatever the format has for it.

Invariant: a text is told as it stands there: `1.10` is no number, and not `1.1`. A number of a
format with types that is whole is written without a fraction, so that 1 and 1.0 are one.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any, Final

#: Characters of one text, beyond which something else is wrong: a quote that is never closed.
MAX_TEXT: Final = 16 * 2**20

#: What a row lacks that holds no value in any column; such rows are left out, which is said.
EMPTY: Final = "nothing but delimiters"

#: Of a label that is written for none.
STANDS: Final = "stands for a label that is not there"

#: What programs write for a label that is not there; no word of a language.
_MISSING: Final = frozenset(
    {"nan", "NaN", "NAN", "-nan", "<NA>", "NaT", "NULL", "null", r"\N", "#N/A"}
)


class UnusableError(Exception):
    """A value is no text, or no label."""


class MissingError(Exception):
    """There is no value."""


def text_of(value: Any, column: str) -> str:
    """A text, as it is.

    Raises:
        MissingError: It is blank.
        UnusableError: It is none, or too long.
    """
    text = value if isinstance(value, str) else _plain(value, column)
    if not text or text.isspace():
        raise MissingError(f"nothing in column {column!r}")
    if len(text) > MAX_TEXT:
        raise UnusableError(f"a text of {len(text)} characters in {column!r}; shorten it")
    if not text.isascii():
        _check_encodable(text, column)
    return text


def words_of(value: Any, column: str) -> str:
    """Words with one blank between them, of a list or of a text with blanks.

    Raises:
        MissingError: There are none, or one is blank.
        UnusableError: One is no text, or holds a blank: it would be two.
    """
    if not isinstance(value, list):
        return " ".join(text_of(value, column).split())
    if not value:
        raise MissingError(f"no word in column {column!r}")
    words = [text_of(each, column) for each in value]
    for word in words:
        if word.split() != [word]:
            raise UnusableError(f"{word[:40]!r} in column {column!r} holds a blank; it is no word")
    return " ".join(words)


def label_of(value: Any, column: str) -> str:
    """A label, without the blanks around it.

    Raises:
        MissingError: There is none, or what programs write for that.
        UnusableError: It is neither a text nor a number.
    """
    label = label_or_blank(value, column)
    if not label:
        raise MissingError(f"nothing in column {column!r}")
    return label


def label_or_blank(value: Any, column: str) -> str:
    """A label, or nothing, where a text of nothing says something.

    Raises:
        MissingError: There is what programs write where there is none.
        UnusableError: It is neither a text nor a number.
    """
    label = (value if isinstance(value, str) else _plain(whole(value), column)).strip()
    if label in _MISSING:
        raise MissingError(f"{label!r} in column {column!r} {STANDS}")
    if not label.isascii():
        _check_encodable(label, column)
    return label


def whole(value: Any) -> Any:
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
    raise UnusableError(f"{kind} in column {column!r}; make it a text")


def _check_encodable(text: str, column: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UnusableError(
            f"half a character (a lone surrogate) in column {column!r}; mend the text"
        ) from None
