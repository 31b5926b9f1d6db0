"""Amounts in a few characters: bytes, and spans of time."""

from __future__ import annotations


def size(number: float) -> str:
    """A number of bytes."""
    for unit in ("B", "K", "M", "G"):
        if number < 1000:
            return f"{number:.0f}{unit}" if unit in "BKM" else f"{number:.1f}{unit}"
        number /= 1024
    return f"{number:.1f}T"


def brief_span(seconds: float) -> str:
    """How long something takes, in a few characters."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
