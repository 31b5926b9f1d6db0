"""The traceback of an objective's error: as people are shown it, and what two have in common."""

from __future__ import annotations

import hashlib
import re
import traceback
from pathlib import Path
from types import TracebackType
from typing import Final

from workers.passwords import hide
from workers.protocol.plain import describe_error, plain_text

#: How much of a traceback travels with a failure: its end, where the error was raised.
MAX_CHARACTERS: Final = 4_000

#: The fingerprint of an objective that said it was done, and returned nothing.
EXITED: Final = "exit 0"

_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{6,}")

#: How much of an error's text counts.
_ERROR_CHARACTERS: Final = 2000

_OWN: Final = str(Path(__file__).resolve().parents[1])


def objective_traceback(error: BaseException) -> str:
    """The traceback from the objective's first frame on, of bounded length, without passwords."""
    lines = traceback.format_exception(type(error), error, _below_own(error.__traceback__))
    text = hide(plain_text("".join(lines)))
    return text if len(text) <= MAX_CHARACTERS else f"[...]{text[5 - MAX_CHARACTERS :]}"


def _below_own(trace: TracebackType | None) -> TracebackType | None:
    """The frames without those that called the objective; all of them, if there are no others."""
    found = trace
    while found is not None and found.tb_frame.f_code.co_filename.startswith(_OWN):
        found = found.tb_next
    return found or trace


def fingerprint(error: BaseException) -> str | None:
    """What two failures with the same traceback have in common; None for what may be luck."""
    if isinstance(error, SystemExit) and error.code in {None, 0}:
        return EXITED
    if not isinstance(error, Exception):
        return None  # an exit code
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{frame.filename}:{frame.lineno}" for frame in frames]
    text = _ADDRESS.sub("", describe_error(error, _ERROR_CHARACTERS))
    return hashlib.sha256("\n".join([*where, text]).encode()).hexdigest()[:16]
