"""How the bytes of a text file are to be read.

Invariant: an encoding is never guessed; a byte-order mark tells it, or it is UTF-8, or it is named.
"""

from __future__ import annotations

import codecs
from typing import Final

#: UTF-32 before UTF-16, whose mark its own begins with.
_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding_of(head: bytes) -> str:
    """The encoding of a file by its first bytes: its mark's, else UTF-8."""
    return next((name for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), "utf-8")


def unmarked_utf16(head: bytes) -> str | None:
    """Which UTF-16 the first bytes look like, where no byte-order mark says so."""
    for name, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[0::2])):
        if len(zeros) > 3 and zeros.count(0) > len(zeros) * 0.9:
            return name
    return None
