"""Where text for people goes: a terminal as wide as it is, or a pipe or file with whole lines.

Invariant: what is no terminal gets no line broken, cut or filled up for its width.
"""

from __future__ import annotations

import sys
from typing import Final

from rich.console import Console

#: Characters of a line of what has no width; more than of any line that is drawn.
_UNBROKEN: Final = 1_000_000


def open_console(*, to_stderr: bool = False, highlight: bool = True) -> Console:
    """The console on the standard output, or on standard error.

    Whether that is a terminal, the system says, whatever `FORCE_COLOR` and `COLUMNS` want.
    """
    if (sys.stderr if to_stderr else sys.stdout).isatty():
        return Console(stderr=to_stderr, highlight=highlight)
    return Console(stderr=to_stderr, highlight=highlight, force_terminal=False, width=_UNBROKEN)
