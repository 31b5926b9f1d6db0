"""Which failures are of one kind: pure."""

from __future__ import annotations

import re
from typing import Final

#: What differs between two failures of one kind: numbers, addresses, what stands in quotes.
_VARIES: Final = re.compile(r"0x[0-9a-fA-F]+|\d+(\.\d+)?(e[+-]?\d+)?|'[^'\n]*'")


def kind_of(traceback: str) -> str:
    """What tracebacks of the same kind have in common."""
    return _VARIES.sub("#", traceback)
