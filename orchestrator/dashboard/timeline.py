"""The time line of slots: which attempt held which slot, from when to when, and how it ended: pure.

Invariant: a bar that is closed does not change, but for what was made again after it; so many bars
are kept at most.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from pydantic import BaseModel

from orchestrator.views.explain import reason
from orchestrator.views.slot_time import lane_of
from workers.protocol.events import Event, EventKind

#: How many bars are kept: the latest.
MAX_BARS: Final = 3000

_ENDS: Final = {EventKind.REQUEUED, EventKind.PAUSED, EventKind.ENDED}


class Bar(BaseModel):
    """One attempt on one slot; times in seconds since 1970."""

    id: int
    revision: int
    trial: int
    attempt: int
    lane: str
    """The slot: its host and device."""
    begun: float
    first_step: float | None = None
    """Until then it got ready."""
    ended: float | None = None
    end: str = "RUNNING"
    """The trial's state after it, or the cause that sent it back to the queue."""
    why: str = ""
    from_step: int | None = None
    """Of the checkpoint that it went on from."""


class Timeline:
    """The bars of one study, from its events."""

    def __init__(self) -> None:
        self.revision = 0
        self.generation: str | None = None
        self._bars: dict[int, Bar] = {}
        self._held: dict[int, Bar] = {}
        self._num = 0

    def take(self, events: Iterable[Event]) -> None:
        """Take in what happened since the last time."""
        self.revision += 1
        for event in events:
            if event.kind is EventKind.DRIVEN:
                self._note_generation(event.generation)
            elif event.trial is not None:
                self._note(event, event.trial)
        for surplus in list(self._bars)[: max(0, len(self._bars) - MAX_BARS)]:
            self._held.pop(self._bars.pop(surplus).trial, None)

    def since(self, revision: int) -> dict[str, Any]:
        """The bars that changed after a revision."""
        bars = [bar for bar in self._bars.values() if bar.revision > revision]
        return {
            "revision": self.revision,
            "first": next(iter(self._bars), 0),
            "bars": [bar.model_dump(exclude={"revision"}, exclude_none=True) for bar in bars],
        }

    def _note_generation(self, generation: str | None) -> None:
        if self.generation not in {None, generation}:  # another study of the same name
            self._bars.clear()
            self._held.clear()
        self.generation = generation

    def _note(self, event: Event, trial: int) -> None:
        held = self._held.get(trial)
        if event.kind is EventKind.CLAIMED:
            if held is not None:  # its end was lost
                self._close(held, event.seconds, "LOST", "nothing tells how it ended")
            self._begin(event, trial)
        elif held is None:
            return
        elif event.kind is EventKind.ASKED:
            self._close(held, event.seconds, "LOST", "Redis lost its record")
        elif event.kind in _ENDS:
            why = reason(event.cause, event.detail, event.count)
            is_back = event.kind is EventKind.REQUEUED
            state = str(event.cause or "QUEUED") if is_back else event.state or event.kind
            self._note_first_step(held, event)
            self._close(held, event.seconds, str(state).upper(), why)
        elif event.kind is EventKind.FIRST_STEP:
            self._note_first_step(held, event)
            held.revision = self.revision

    def _begin(self, event: Event, trial: int) -> None:
        self._num += 1
        bar = Bar(
            id=self._num,
            revision=self.revision,
            trial=trial,
            attempt=event.attempt or 1,
            lane=lane_of(event),
            begun=event.seconds,
            from_step=event.step,
        )
        self._bars[bar.id] = self._held[trial] = bar

    def _note_first_step(self, bar: Bar, event: Event) -> None:
        if event.after_ms is not None:
            bar.first_step = bar.begun + event.after_ms / 1000

    def _close(self, bar: Bar, seconds: float, end: str, why: str) -> None:
        self._held.pop(bar.trial, None)
        bar.ended, bar.end, bar.why, bar.revision = seconds, end, why, self.revision
