"""The slots of a fleet among the studies that are driven: what each is granted in a turn.

Invariant: only a study that gets on, and whose driver can use it now, is granted anything; what one
that does not get on has in flight keeps no slot from the others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from orchestrator.driving.driver import StudyDriver
from orchestrator.driving.queues import Queues
from orchestrator.driving.shared_queue import Partners, SharedQueue, room
from orchestrator.driving.shares import Demand, Shares
from workers.processes.registry import QueueUse


class Allotment:
    """Follows what studies want, from turn to turn."""

    def __init__(self) -> None:
        #: what each was last seen to want, with what it was granted since
        self._demands: dict[str, Demand] = {}
        #: by queue
        self._shares: dict[str, Shares] = {}
        self._shared: dict[str, SharedQueue] = {}
        #: of each queue that others use, too: what the studies that are driven here do
        self.uses: dict[str, QueueUse] = {}
        #: those whose demand is to be looked at anew
        self._changed: set[str] = set()
        #: what was asked last and granted nobody anything: asked again, it would not, either
        self._in_vain: object = None

    def begin(self, study: str) -> None:
        """Follow a study that nothing is known of yet."""
        self._demands[study], self._in_vain = Demand.nothing(), None

    def look_again(self, study: str) -> None:
        """Ask a study anew what it wants, as soon as its driver can be asked."""
        self._changed.add(study)

    def grant(
        self,
        getting_on: Mapping[str, StudyDriver],
        idle: Mapping[str, StudyDriver],
        queues: Queues,
        partners: Partners | None = None,
        *,
        is_draining: bool,
    ) -> dict[str, int]:
        """How many trials each study may ask for now.

        Args:
            getting_on: The studies that share the slots.
            idle: Those whose driver is not at a turn.
            queues: The slots.
            partners: Other orchestrators, whose studies want some of them, too.
            is_draining: Whether no further trial may be asked for.
        """
        partners = partners or Partners()
        self._look(idle, is_draining=is_draining)
        busy = getting_on.keys() - idle.keys()
        places = [(name, driver.queue) for name, driver in getting_on.items()]
        slots = {queue: queues.slots(queue) for _, queue in places}
        asked = places, slots, busy, partners
        if asked == self._in_vain:
            return {}
        by_queue: dict[str, dict[str, Demand]] = {}
        for name, driver in getting_on.items():
            demand = self._demands[name]
            if name not in idle and demand.wanted:
                # what a driver at its turn is granted now would be lost
                demand = replace(demand, wanted=0)
            by_queue.setdefault(driver.queue, {})[name] = demand
        rooms = self._rooms(getting_on, slots, partners, busy)
        granted: dict[str, int] = {}
        for queue, demands in by_queue.items():
            shares = self._shares.setdefault(queue, Shares())
            granted |= shares.allot(slots[queue], demands, rooms.get(queue))
        self._in_vain = None if any(granted.values()) else asked
        for name, count in granted.items():
            if count:
                self._demands[name] = self._demands[name].granted(count)
                self._changed.add(name)
        return granted

    def _rooms(
        self,
        getting_on: Mapping[str, StudyDriver],
        slots: Mapping[str, int],
        partners: Partners,
        busy: Collection[str],
    ) -> dict[str, int]:
        """How many more trials may be in flight of each queue that others use, too."""
        if not partners.uses:
            self.uses, self._shared = {}, {}
            return {}
        demands: dict[str, dict[str, Demand]] = {}
        for name, driver in getting_on.items():
            demands.setdefault(driver.queue, {})[name] = self._demands[name]
        self.uses, rooms = {}, {}
        for queue, each in demands.items():
            others = partners.of(queue)
            shared = self._shared.setdefault(queue, SharedQueue())
            self.uses[queue] = use = shared.use(each, slots[queue], others, busy)
            if others:
                rooms[queue] = room(slots[queue], partners.own, {**others, partners.own: use})
        return rooms

    def _look(self, idle: Mapping[str, StudyDriver], *, is_draining: bool) -> None:
        """Ask the studies what they want of which that may have changed."""
        for name in idle.keys() & (idle.keys() if is_draining else self._changed):
            demand = idle[name].demand(is_draining=is_draining)
            if demand != self._demands[name]:
                self._demands[name], self._in_vain = demand, None
        self._changed -= idle.keys()

    def forget_others(self, studies: Collection[str], queues: Collection[str]) -> None:
        """Keep nothing but of some studies, and of some queues."""
        for name in self._demands.keys() - set(studies):
            del self._demands[name]
        self._changed &= set(studies)
        self._shares = {queue: each for queue, each in self._shares.items() if queue in queues}
