"""Where the time of slots went, from a study's events: trained, got ready, lost, idle.

A slot counts from its first trial of the study to its last one.

Invariant: pure; what no event tells is not counted, and nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from pydantic import BaseModel

from orchestrator.views.attempt_time import AttemptTimes, Spent
from orchestrator.views.explain import place
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

    @property
    def trained_share(self) -> float | None:
        """What part was training that counts, of the time whose use is known; None without any."""
        known = self.total - self.running
        return self.trained / known if known > 0 else None


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

    def so_far(self, now: float | None) -> SlotTime:
        """The sums; attempts that have not ended go on until now, if they go on."""
        slots = {name: replace(slot) for name, slot in self.slots.items()}
        names, running = {id(slot): name for name, slot in self.slots.items()}, 0.0
        for slot, begun in self.held.values() if now is not None else ():
            goes_on = slots[names[id(slot)]]
            goes_on.held += max(0.0, now - begun) if now is not None else 0.0
            goes_on.last = max(goes_on.last, now or 0.0)
            running += max(0.0, (now or 0.0) - begun)
        uses = [_use(name, slot) for name, slot in sorted(slots.items())]
        idle = sum(each.idle_seconds for each in uses)
        return self.spent.model_copy(update={"running": running, "slots": uses, "idle": idle})

    def _add(self, spent: Spent) -> None:
        self.spent.trained += spent.trained
        self.spent.warming += spent.warming
        self.spent.lost += spent.lost


class SlotTimes:
    """Follows the events of one study; of another generation of its name, all begins anew."""

    def __init__(self) -> None:
        self._course = _Course()
        self._generation: str | None = None

    def take(self, events: Iterable[Event]) -> None:
        """Count further ones, in order."""
        for event in events:
            if event.kind is EventKind.DRIVEN:
                if self._generation not in {None, event.generation}:
                    self._course = _Course()
                self._generation = event.generation
            elif event.trial is not None:
                self._course.note(event, event.trial)

    def so_far(self, now: float | None) -> SlotTime:
        """Where the time went; see `slot_time`."""
        return self._course.so_far(now)


def slot_time(events: Iterable[Event], now: float | None) -> SlotTime:
    """Where the time went.

    Args:
        events: Of one study, in order; of another generation of its name, all begins anew.
        now: In seconds since 1970, by the clock of Redis; None where no trial runs any more.
    """
    times = SlotTimes()
    times.take(events)
    return times.so_far(now)


def lane_of(event: Event) -> str:
    """The slot of an attempt: a device outlives the processes that run on it."""
    if event.device:
        where = place(None, None, event.device).removeprefix("on ")
        return f"{event.host or '?'} {where}"
    return f"{event.host or '?'} process {event.pid or '?'}"


def _use(name: str, slot: _Slot) -> SlotUse:
    idle = max(0.0, slot.last - slot.first - slot.held)
    return SlotUse(slot=name, attempts=slot.attempts, held_seconds=slot.held, idle_seconds=idle)
