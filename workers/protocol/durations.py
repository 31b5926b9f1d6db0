"""Durations as people write them."""

from __future__ import annotations

import re
from typing import Final

_NUMBER: Final = r"\d+(?:\.\d+)?"
#: What `parse_duration` reads.
DURATION_PATTERN: Final = rf"^\s*(?:{_NUMBER}|(?:{_NUMBER}\s*[dhms]\s*)+)\s*$"
_DURATION: Final = re.compile(DURATION_PATTERN)
_PART: Final = re.compile(rf"({_NUMBER})\s*([dhms]?)")
_UNIT_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> float:
    """Read `90`, `90s`, `15m`, `1h30m` or `1d` as seconds.

    Raises:
        ValueError: The text is none of these.
    """
    parts = _PART.findall(text)
    units = [unit for _, unit in parts]
    if _DURATION.match(text) is None or len(set(units)) < len(units):
        raise ValueError(f"{text!r} is no duration; write 90s, 15m, 2h, 1h30m or 1d")
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
