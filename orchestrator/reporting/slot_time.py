"""Where the time of slots went, from a study's events: trained, got ready, lost, idle.

A slot counts from its first trial of the study to its last one.

Invariant: pure; what no event tells is not counted, and nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import BaseModel

from orchestrator.dashboard.timeline import lane_of
from orchestrator.views.attempt_time import AttemptTimes, Spent
from workers.protocol.events import Event, EventKind

_ENDS = frozenset({EventKind.REQUEUED, EventKind.PAUSED, EventKind.ENDED})

#: After these, nobody holds a trial who did before, even if that was not told.
_NOT_HELD = _ENDS | {EventKind.ASKED, EventKind.PROMOTED, EventKind.CLAIMED}


class SlotUse(BaseModel):
    """One slot: a device of a host, or a process."""

    slot: str
    attempts: int
    held_seconds: float
    idle_seconds: float


class SlotTime(BaseModel):
    """Seconds of all slots together, by what they were for."""

    trained: float = 0.0
    """Training whose result counts."""
    warming: float = 0.0
    """From a claim to the first training step."""
    lost: float = 0.0
    """Training that counts for nothing, or was made again."""
    running: float = 0.0
    """Of attempts that have not ended."""
    idle: float = 0.0
    """Between a slot's first trial and its last, without one."""
    slots: list[SlotUse] = []
    """Each slot, by name."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.trained + self.warming + self.lost + self.running + self.idle


@dataclass
class _Slot:
    first: float
    last: float
    held: float = 0.0
    attempts: int = 0


@dataclass
class _Course:
    """What was told so far of one generation of a study."""

    times: AttemptTimes = field(default_factory=AttemptTimes)
    spent: SlotTime = field(default_factory=SlotTime)
    slots: dict[str, _Slot] = field(default_factory=dict)
    held: dict[int, tuple[_Slot, float]] = field(default_factory=dict)

    def note(self, event: Event, trial: int) -> None:
        if event.kind in _NOT_HELD and trial in self.held:
            slot, begun = self.held.pop(trial)
            slot.last = max(slot.last, event.seconds)
            slot.held += event.seconds - begun
        if event.kind is EventKind.CLAIMED:
            slot = self.slots.setdefault(lane_of(event), _Slot(event.seconds, event.seconds))
            slot.attempts += 1
            slot.last = max(slot.last, event.seconds)
            self.held[trial] = slot, event.seconds
        told = self.times.take(event.kind, event.seconds * 1000, vars(event))
        if told.spent is not None:
            self._add(told.spent)
        self.spent.trained -= told.undone
        self.spent.lost += told.undone

    def finish(self, now: float | None) -> SlotTime:
        """The sums; attempts that have not ended go on until now, if they go on."""
        for slot, begun in self.held.values() if now is not None else ():
            slot.held += max(0.0, now - begun) if now is not None else 0.0
            slot.last = max(slot.last, now or 0.0)
            self.spent.running += max(0.0, (now or 0.0) - begun)
        self.spent.slots = [_use(name, slot) for name, slot in sorted(self.slots.items())]
        self.spent.idle = sum(each.idle_seconds for each in self.spent.slots)
        return self.spent

    def _add(self, spent: Spent) -> None:
        self.spent.trained += spent.trained
        self.spent.warming += spent.warming
        self.spent.lost += spent.lost


def slot_time(events: Iterable[Event], now: float | None) -> SlotTime:
    """Where the time went.

    Args:
        events: Of one study, in order; of another generation of its name, all begins anew.
        now: In seconds since 1970, by the clock of Redis; None where no trial runs any more.
    """
    course, generation = _Course(), None
    for event in events:
        if event.kind is EventKind.DRIVEN:
            if generation not in {None, event.generation}:
                course = _Course()
            generation = event.generation
        elif event.trial is not None:
            course.note(event, event.trial)
    return course.finish(now)


def _use(name: str, slot: _Slot) -> SlotUse:
    idle = max(0.0, slot.last - slot.first - slot.held)
    return SlotUse(slot=name, attempts=slot.attempts, held_seconds=slot.held, idle_seconds=idle)
