"""What one orchestrator may ask for of a queue whose slots others want trials for, too.

Each tells the others how much it has in flight there and wants, and how far it is: how many
slot-seconds its studies used for their weight. Of what may be in flight each is sure of its part,
in whole trials and one at least, unless it is much further than another one; what is left goes to
whoever is least far, so that parts of a slot, and long trials, come to their due, too. What another
one tells is a second or two old, and nobody waits for news of it.

Invariant: pure but for how far it is; of orchestrators that see the same, each leaves the others
what they take.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from typing import Final

from orchestrator.driving.shares import Demand, num_ready
from workers.processes.registry import QueueUse

#: How old what another one tells may be: who may be further only by what that one did since, goes
#: on; whoever is further than that waits for it.
_LATE_SECONDS: Final = 3.0


@dataclass(frozen=True, slots=True)
class Partners:
    """The orchestrators that share studies with this one."""

    own: str = ""
    """The identity of this one."""
    uses: Mapping[str, Mapping[str, QueueUse]] = field(default_factory=dict)
    """By identity, and by queue: what each of the others has in flight and wants."""

    def of(self, queue: str) -> dict[str, QueueUse]:
        """Those that use a queue, by identity."""
        return {who: uses[queue] for who, uses in self.uses.items() if queue in uses}


class SharedQueue:
    """Follows how far this orchestrator's studies of one queue are."""

    def __init__(self) -> None:
        self._level = 0.0
        #: slot-seconds that each was charged when it was last seen
        self._charged: dict[str, float] = {}
        self._is_active = False

    def use(
        self, demands: Mapping[str, Demand], slots: int, others: Mapping[str, QueueUse]
    ) -> QueueUse:
        """What is to be told of this orchestrator's studies now.

        Args:
            demands: What each has and wants.
            slots: Pool processes that take trials from the queue.
            others: What other orchestrators told, by their identity.
        """
        active = [each for each in demands.values() if each.wanted or each.in_flight]
        pull = sum(each.pull for each in active)
        if active and not self._is_active:  # it has its part at once, and no more than that
            least = min((each.level for each in others.values() if each.pull), default=0.0)
            self._level = max(self._level, least)
        self._is_active = bool(active)
        if pull:
            grown = (
                each.charged - self._charged.get(name, each.charged - each.in_flight * each.seconds)
                for name, each in demands.items()
            )
            self._level += sum(grown) / pull
        self._charged = {name: each.charged for name, each in demands.items()}
        return QueueUse(
            level=self._level,
            pull=pull,
            seconds=sum(each.pull * each.seconds for each in active) / pull if pull else 0.0,
            wanted=sum(each.most(slots) for each in demands.values()),
            in_flight=sum(each.in_flight for each in demands.values()),
            running=sum(each.running for each in demands.values()),
            stuck=sum(each.stuck for each in demands.values()),
        )


def room(slots: int, own: str, uses: Mapping[str, QueueUse]) -> int:
    """How many more trials one orchestrator may have in flight.

    Args:
        slots: Pool processes that take trials from the queue.
        own: Its identity.
        uses: Its own, and the others'.
    """
    parts = _parts(slots + num_ready(slots, uses[own].seconds), uses)
    least = min((use.level for use in uses.values() if use.wanted), default=0.0)
    sure = {
        who: max(0, min(use.wanted, max(1, math.floor(parts[who])) - use.in_flight))
        if (use.level - least) * use.pull <= slots * _LATE_SECONDS + use.seconds
        else 0
        for who, use in uses.items()
    }
    in_flight = sum(use.in_flight + sure[who] for who, use in uses.items())
    if sum(use.running for use in uses.values()) < slots:
        in_flight -= sum(use.stuck for use in uses.values())
    left = {who: use.wanted - sure[who] for who, use in uses.items()}
    granted = sure[own]
    takers = [
        (use.level + sure[who] * use.seconds / use.pull, who)
        for who, use in uses.items()
        if left[who] > 0 and use.pull
    ]
    heapify(takers)
    while takers:
        level, who = takers[0]
        use = uses[who]
        if in_flight >= slots + num_ready(slots, use.seconds):
            break
        in_flight += 1
        left[who] -= 1
        granted += who == own
        if left[who]:
            heapreplace(takers, (level + use.seconds / use.pull, who))
        else:
            heappop(takers)
    return granted


def _parts(most: int, uses: Mapping[str, QueueUse]) -> dict[str, float]:
    """What each may have in flight by its weight, where nobody has more than it has and wants."""
    parts = dict.fromkeys(uses, 0.0)
    open_ = {who for who, use in uses.items() if use.pull}
    left = float(most)
    while open_:
        pull = sum(uses[who].pull for who in open_)
        content = {
            who
            for who in open_
            if uses[who].in_flight + uses[who].wanted <= left * uses[who].pull / pull
        }
        if not content:
            return parts | {who: left * uses[who].pull / pull for who in open_}
        for who in content:
            parts[who] = float(uses[who].in_flight + uses[who].wanted)
        left -= sum(parts[who] for who in content)
        open_ -= content
    return parts
