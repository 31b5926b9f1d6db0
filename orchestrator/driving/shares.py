"""Whose trial is next: how the slots of a queue are shared out among the studies that want them.

Each study has used so many slot-seconds for its weight; the one with the least is next, which is
deficit round robin over what is in flight. A study that comes, or that wants trials again after a
while, starts level with the one that has the least: it has its share at once, and no more than it.

Source: Shreedhar and Varghese, "Efficient fair queuing using deficit round-robin" (1996).

Invariant: pure; a study that wants trials and may have them is never passed over for ever.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heapreplace
from typing import Final

#: By how much one step of priority outweighs: the lower one still gets one slot-second in so many.
PRIORITY_FACTOR: Final = 20.0

#: What every trial counts as at least, in slot-seconds: one that does nothing costs something, too.
MIN_TRIAL_SECONDS: Final = 0.001

#: What each process that trials of a study took down counts as, in slot-seconds: for about so long
#: its slot runs no trial, until a fresh process has imported what trains.
LOSS_SECONDS: Final = 5.0

#: For so long short trials wait ready for a slot, so that none waits for the orchestrator.
READY_SECONDS: Final = 0.25

#: Of short trials, at most so many a slot wait ready: each suggestion is made without the ones
#: before it.
MAX_READY_PER_SLOT: Final = 48

#: For so long one hint keeps a slot busy, of short trials: a trial of another study waits for it.
HINT_SECONDS: Final = 0.05

#: One hint is for so many trials at most: where most of what is in flight waits ready, no slot
#: lacks a hint while another one has it.
MAX_PER_HINT: Final = MAX_READY_PER_SLOT // 2


@dataclass(frozen=True, slots=True)
class Demand:
    """What one study has in flight, has used, and wants."""

    wanted: int
    """Trials that it would have asked for now, if all slots were its own."""
    in_flight: int
    """Trials that were asked for and have not ended, but those that wait for a later time."""
    trial_seconds: float | None
    """How long its latest trials took; None before any has ended."""
    used_seconds: float
    """Slot-seconds of its ended trials, and of slots that it has start anew."""
    weight: float = 1.0
    priority: int = 0
    max_slots: int | None = None
    """At most so many of its trials in flight; None for no bound."""
    running: int = 0
    """Of those in flight, how many a worker holds."""
    stuck: int = 0
    """Of those in flight, how many have waited for long without a worker that takes them."""

    @classmethod
    def nothing(cls) -> Demand:
        """Of a study that was not looked at yet."""
        return cls(wanted=0, in_flight=0, trial_seconds=None, used_seconds=0.0)

    def most(self, slots: int) -> int:
        """How many trials it may be granted at once, were all slots its own."""
        most: float = math.inf if self.max_slots is None else self.max_slots
        if self.stuck:  # what it has in flight does not count, and more would wait with it
            most = min(most, slots + num_ready(slots, self.trial_seconds))
        return int(max(0, min(self.wanted, most - self.in_flight)))

    def granted(self, count: int) -> Demand:
        """After so many trials were granted."""
        return replace(self, wanted=self.wanted - count, in_flight=self.in_flight + count)

    @property
    def seconds(self) -> float:
        """What one more trial of it is taken to cost."""
        return max(MIN_TRIAL_SECONDS, self.trial_seconds or 0.0)

    @property
    def charged(self) -> float:
        """Slot-seconds that it has used, those in flight included."""
        return self.used_seconds + self.in_flight * self.seconds

    @property
    def pull(self) -> float:
        """Its weight with its priority."""
        return self.weight * PRIORITY_FACTOR**self.priority


def num_ready(slots: int, trial_seconds: float | None) -> int:
    """How many trials are to wait ready beside those that run.

    One, so that a slot that comes free need not wait; of short trials as many as the slots run
    through in `READY_SECONDS`.
    """
    if trial_seconds is None:
        return 1
    seconds = max(MIN_TRIAL_SECONDS, trial_seconds)
    return max(1, min(MAX_READY_PER_SLOT * slots, math.ceil(slots * READY_SECONDS / seconds) - 1))


def num_per_hint(trial_seconds: float | None, count: int, slots: int) -> int:
    """How many trials one message hints at: of those that are not short, one.

    Never more than one slot's share of those that are announced together: no slot lacks a trial
    that another one has in its message.

    Args:
        trial_seconds: How long one takes.
        count: How many are announced.
        slots: That may run trials of the study at a time.
    """
    if trial_seconds is None:
        return 1
    seconds = max(MIN_TRIAL_SECONDS, trial_seconds)
    share = count // max(1, slots)
    return max(1, min(MAX_PER_HINT, share, math.floor(HINT_SECONDS / seconds)))


class Shares:
    """Shares out the slots of one queue, from turn to turn."""

    def __init__(self) -> None:
        #: study -> what its use is counted from, and the pull by which
        self._bases: dict[str, tuple[float, float]] = {}

    def allot(
        self, slots: int, demands: Mapping[str, Demand], room: int | None = None
    ) -> dict[str, int]:
        """How many trials each study may ask for now.

        Args:
            slots: Pool processes that take trials from the queue.
            demands: What each study of the queue has and wants.
            room: Of a queue that other orchestrators use, too: so many in all.
        """
        self._follow(demands, slots)
        granted = dict.fromkeys(demands, 0)
        if slots == 0:
            return granted
        left = {name: demand.most(slots) for name, demand in demands.items()}
        in_flight = sum(demand.in_flight for demand in demands.values())
        if sum(demand.running for demand in demands.values()) < slots:
            # a slot is idle, and takes none of these: they are to keep it from no other study
            in_flight -= sum(demand.stuck for demand in demands.values())
        most = in_flight + (room or 0)
        # what one is granted changes nobody else's level
        takers = [
            (self._level(name, demand, 0), name) for name, demand in demands.items() if left[name]
        ]
        heapify(takers)
        while takers:
            name = takers[0][1]
            demand = demands[name]
            has_room = in_flight < slots + num_ready(slots, demand.trial_seconds)
            if not has_room or (room is not None and in_flight >= most):
                break  # for nobody else, either: who has used more is not to have what is left
            granted[name] += 1
            in_flight += 1
            if granted[name] < left[name]:
                heapreplace(takers, (self._level(name, demand, granted[name]), name))
            else:
                heappop(takers)
        return granted

    def _level(self, name: str, demand: Demand, granted: int) -> float:
        """How much a study has used for its weight."""
        base, pull = self._bases[name]
        return (demand.charged + granted * demand.seconds - base) / pull

    def _follow(self, demands: Mapping[str, Demand], slots: int) -> None:
        """Keep the level of studies that go on; set the others level with the lowest.

        One at its most slots has nothing owed but what it may have in flight: whoever lifts that
        gives it its share from then on, and not what it would have had.
        """
        active = {name for name, each in demands.items() if each.wanted or each.in_flight}
        known = {name: base for name, base in self._bases.items() if name in active}
        levels = {
            name: (demands[name].charged - base) / pull for name, (base, pull) in known.items()
        }
        lowest = min(levels.values(), default=0.0)
        able = [level for name, level in levels.items() if demands[name].most(slots)]
        lowest_of_able = min(able, default=-math.inf)
        self._bases = {}
        for name, demand in demands.items():
            level = levels.get(name, lowest)
            if demand.max_slots is not None and demand.in_flight >= demand.max_slots:
                level = max(level, lowest_of_able - demand.in_flight * demand.seconds / demand.pull)
            self._bases[name] = demand.charged - level * demand.pull, demand.pull
