"""Which studies stand still because something of theirs fails, why, and when each is tried again.

Invariant: what fails in one study is told once for each reason, backed off up to a cap, and never
forgotten before the study has been well for a while.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

#: Before the first further attempt, and at most, however often it failed.
_FIRST_SECONDS: Final = 0.5
_CAP_SECONDS: Final = 30.0

#: A study that was well for so long has got over it: the next failure is a first one again.
_WELL_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Stall:
    """Why a study stands still."""

    reason: str
    count: int
    """How often it failed in a row."""
    failed_at: float
    since: float
    """When the first of these was."""

    @property
    def retry_at(self) -> float:
        """When it is tried again, by the monotonic clock."""
        return self.failed_at + min(_CAP_SECONDS, _FIRST_SECONDS * 2.0 ** min(self.count - 1, 10))


class Stalls:
    """The studies of one orchestrator that stand still."""

    def __init__(self) -> None:
        self._stalls: dict[str, Stall] = {}

    def note(self, name: str, reason: str) -> tuple[Stall, bool]:
        """A study failed; the stall, and whether its reason is a new one."""
        before, now = self._stalls.get(name), time.monotonic()
        if before is not None and now - before.retry_at > _WELL_SECONDS:
            before = None
        count = 1 if before is None else before.count + 1
        self._stalls[name] = Stall(reason, count, now, now if before is None else before.since)
        return self._stalls[name], before is None or before.reason != reason

    def forget_others(self, names: Collection[str]) -> None:
        """Forget studies that are not there any more, and those that have got over it."""
        now = time.monotonic()
        self._stalls = {
            name: stall
            for name, stall in self._stalls.items()
            if name in names and now - stall.retry_at <= _WELL_SECONDS
        }

    @property
    def are_any(self) -> bool:
        """Whether one stands still, or has not been well for long since it did."""
        return bool(self._stalls)

    def held(self, longer_than: float = 0.0) -> set[str]:
        """The studies that are to be left alone for now.

        Args:
            longer_than: Only those that have been failing for so many seconds.
        """
        now = time.monotonic()
        return {
            name
            for name, stall in self._stalls.items()
            if now < stall.retry_at and stall.failed_at - stall.since >= longer_than
        }
