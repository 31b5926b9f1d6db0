"""What a trial printed, so that a terminal shows it and does not act on it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from orchestrator.storage.printed import PrintedAttempt
from orchestrator.views.ps import printable

#: Colours and movements of a terminal.
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")


def lines_of(text: str) -> list[str]:
    """The lines of a text; of a line that was written over again and again, the last state."""
    clean = _ESCAPES.sub("", text).replace("\r\n", "\n")
    return [
        printable(line.rstrip("\r").rpartition("\r")[2].expandtabs())
        for line in clean.removesuffix("\n").split("\n")
    ]


def last_lines(found: Sequence[PrintedAttempt], attempt: int, count: int) -> list[str]:
    """The last lines that an attempt printed, empty ones left out."""
    texts = [each.text for each in found if each.attempt == attempt]
    return [line for line in lines_of(texts[-1]) if line.strip()][-count:] if texts else []
