"""Texts in the signs that a terminal's encoding has.

Invariant: what is given back can be written, in as many characters as before.
"""

from __future__ import annotations

from typing import Final

from rich.text import Text

#: What stands for a sign of ours where the encoding does not have it.
_PLAIN: Final = str.maketrans({"━": "=", "─": "-", "…": "~"})


def encodable(text: str, encoding: str) -> str:
    """A text with another sign for each that the encoding does not have."""
    if _can_write(text, encoding):
        return text
    return text.translate(_PLAIN).encode(encoding, "replace").decode(encoding)


def encodable_line(line: Text, encoding: str) -> Text:
    """A line so, in the colours that it has."""
    line.plain = encodable(line.plain, encoding)
    return line


def _can_write(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
