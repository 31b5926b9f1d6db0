"""How fast an attempt trains: sent along with each renewal of its lease, and shown to people.

Invariant: it is of one attempt: what an earlier one left in the record tells nothing of the next.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import NamedTuple, Self


class Pace(NamedTuple):
    """Between the last two renewals; None where nobody told."""

    steps: float | None = None
    """Steps a second."""
    examples: float | None = None
    """Examples trained on a second."""
    total: int | None = None
    """Steps that the whole training has."""

    def encode(self, token: int) -> str:
        """As the record of a trial has it, with the attempt's token."""
        return json.dumps([token, *self], separators=(",", ":"))

    @classmethod
    def read(cls, text: str | None, token: int) -> Self | None:
        """The pace in a record, if it is that attempt's."""
        with suppress(ValueError, TypeError):
            of, steps, examples, total = json.loads(text or "")
            if of == token:
                return cls(steps, examples, total)
        return None
