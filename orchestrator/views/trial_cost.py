"""What one trial cost: the seconds of slots that it held, by what they were for, and its waiting.

Invariant: pure; where slot time went is told by `AttemptTimes`, as metrics and reports have it, and
what no event tells is not counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pydantic import BaseModel

from orchestrator.views.attempt_time import AttemptTimes, Spent
from workers.protocol.events import Event, EventKind
from workers.protocol.states import TrialState

#: From each of these on, a trial waits, at a rung or for its turn; or it does not.
_TURNS: Final = {
    EventKind.ASKED: "queued_seconds",
    EventKind.REQUEUED: "queued_seconds",
    EventKind.PROMOTED: "queued_seconds",
    EventKind.PAUSED: "paused_seconds",
    EventKind.CLAIMED: None,
    EventKind.ENDED: None,
}


class TrialCost(BaseModel):
    """Seconds of slots, and of waiting, which holds none."""

    useful_seconds: float = 0.0
    """Training whose result counts, up to its end or the checkpoint that another attempt took."""
    warming_seconds: float = 0.0
    """From claims to first training steps."""
    lost_seconds: float = 0.0
    """Training that counts for nothing, or was made again."""
    running_seconds: float = 0.0
    """Of an attempt that goes on, beyond its first step: what becomes of it is not known yet."""
    queued_seconds: float = 0.0
    """Until it was claimed, pauses after failures included."""
    paused_seconds: float = 0.0
    """At rungs, until it was promoted."""

    @property
    def slot_seconds(self) -> float:
        """All of its slots' time."""
        return self.useful_seconds + self.warming_seconds + self.lost_seconds + self.running_seconds


class _Course:
    """What was told so far of one trial."""

    def __init__(self, trial: int) -> None:
        self._trial = trial
        self._times = AttemptTimes()
        self._waits_as: str | None = None
        self._since = 0.0
        self._seconds = dict.fromkeys(TrialCost.model_fields, 0.0)

    def note(self, event: Event) -> None:
        if event.kind in _TURNS:
            self._wait_until(event.seconds)
            waits_as = _TURNS[EventKind(event.kind)]
            # one whose record was lost is written again as it was
            is_at_rung = waits_as and event.state == TrialState.PAUSED
            self._waits_as = "paused_seconds" if is_at_rung else waits_as
            self._since = event.seconds
        told = self._times.take(event.kind, event.seconds * 1000, vars(event))
        if told.spent is not None:
            self._add(told.spent)
        self._seconds["useful_seconds"] -= told.undone
        self._seconds["lost_seconds"] += told.undone

    def finish(self, now: float | None) -> TrialCost:
        if now is not None:
            self._wait_until(now)
            going_on = self._times.going_on(self._trial, now * 1000)
            self._seconds["warming_seconds"] += going_on.warming
            self._seconds["running_seconds"] += going_on.trained
        return TrialCost(**self._seconds)

    def _add(self, spent: Spent) -> None:
        self._seconds["useful_seconds"] += spent.trained
        self._seconds["warming_seconds"] += spent.warming
        self._seconds["lost_seconds"] += spent.lost

    def _wait_until(self, at: float) -> None:
        if self._waits_as is not None:
            self._seconds[self._waits_as] += max(0.0, at - self._since)


def cost_of(trial: int, events: Iterable[Event], now: float | None) -> TrialCost:
    """What a trial has cost.

    Args:
        trial: Its number; events of others are passed over.
        events: In order.
        now: In seconds since 1970, by the clock of Redis; None where it goes on no more.
    """
    course = _Course(trial)
    for event in events:
        if event.trial == trial:
            course.note(event)
    return course.finish(now)
