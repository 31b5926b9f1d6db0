"""What one orchestrator may ask for of a queue whose slots others want trials for, too.

Each tells the others how much it has in flight there and wants, and how far it is: how many
slot-seconds its studies used for their weight. Of what may be in flight each is sure of its part,
in whole trials and one at least, unless it is much further than another one; what is left goes to
whoever is least far, so that parts of a slot, and long trials, come to their due, too. Studies that
can take less than their part, such as those at their `max_slots`, have what they can take; their
weight is not for the others to use. What another one tells is a second or two old, and nobody waits
for news of it.

Invariant: pure but for how far it is; of orchestrators that see the same, each leaves the others
what they take.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from typing import Final

from orchestrator.driving.shares import MIN_TRIAL_SECONDS, Demand, num_ready
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
        self,
        demands: Mapping[str, Demand],
        slots: int,
        others: Mapping[str, QueueUse],
        busy: Collection[str] = (),
    ) -> QueueUse:
        """What is to be told of this orchestrator's studies now.

        Args:
            demands: What each has and wants.
            slots: Pool processes that take trials from the queue.
            others: What other orchestrators told, by their identity.
            busy: Those that cannot take anything now: no slot is to wait for them.
        """
        content = _content(demands, slots, others)
        active = [
            each
            for name, each in demands.items()
            if name not in content and (each.wanted or each.in_flight)
        ]
        pull = sum(each.pull for each in active)
        if active and not self._is_active:  # it has its part at once, and no more than that
            least = min((each.level for each in others.values() if each.pull), default=0.0)
            self._level = max(self._level, least)
        self._is_active = bool(active)
        if pull:
            grown = (
                each.charged - self._charged.get(name, each.charged - each.in_flight * each.seconds)
                for name, each in demands.items()
                if name not in content
            )
            self._level += sum(grown) / pull
        self._charged = {name: each.charged for name, each in demands.items()}
        free = {name: each.most(slots) for name, each in demands.items() if name not in busy}
        return QueueUse(
            level=self._level,
            pull=pull,
            seconds=_mean_seconds(active),
            wanted=sum(free.values()),
            in_flight=sum(each.in_flight for each in demands.values()),
            running=sum(each.running for each in demands.values()),
            stuck=sum(each.stuck for each in demands.values()),
            content=sum(content.values()),
            content_wanted=sum(free.get(name, 0) for name in content),
        )


def _content(
    demands: Mapping[str, Demand], slots: int, others: Mapping[str, QueueUse]
) -> dict[str, int]:
    """The studies that can take no more than their part of the slots, and how much that is."""
    can_take = {
        name: each.in_flight - each.stuck + each.most(slots) for name, each in demands.items()
    }
    pull = sum(each.pull for each in others.values())
    pull += sum(demand.pull for name, demand in demands.items() if can_take[name])
    left = float(slots - sum(each.content for each in others.values()))
    content: dict[str, int] = {}
    for name in sorted(can_take, key=lambda name: can_take[name] / demands[name].pull):
        if can_take[name] * pull > left * demands[name].pull:
            break
        content[name] = can_take[name]
        if can_take[name]:
            left, pull = left - can_take[name], pull - demands[name].pull
    return content


def _mean_seconds(active: Collection[Demand]) -> float:
    """How long a trial of these takes, by their pull; 0 where none has ended yet."""
    known = [each for each in active if each.trial_seconds is not None]
    pull = sum(each.pull for each in known)
    return sum(each.pull * each.seconds for each in known) / pull if pull else 0.0


def _num_ready(slots: int, use: QueueUse) -> int:
    """How many trials of one orchestrator are to wait ready."""
    return num_ready(slots, use.seconds or None)


def _step(use: QueueUse) -> float:
    """By how much one more trial brings an orchestrator further."""
    return max(MIN_TRIAL_SECONDS, use.seconds) / use.pull


def room(slots: int, own: str, uses: Mapping[str, QueueUse]) -> int:
    """How many more trials one orchestrator may have in flight.

    Args:
        slots: Pool processes that take trials from the queue.
        own: Its identity.
        uses: Its own, and the others'.
    """
    if sum(use.running for use in uses.values()) < slots:
        # a slot is idle, and takes none of these: they are to keep it from nobody
        uses = {
            who: use.model_copy(update={"in_flight": use.in_flight - use.stuck})
            for who, use in uses.items()
        }
    parts = _parts(slots + _num_ready(slots, uses[own]), uses)
    least = min((use.level for use in uses.values() if use.wanted and use.pull), default=0.0)
    sure = {}
    for who, use in uses.items():
        is_near = (use.level - least) * use.pull <= slots * _LATE_SECONDS + use.seconds
        its = max(1, math.floor(parts[who])) - use.in_flight if is_near else 0
        sure[who] = max(use.content_wanted, min(use.wanted, its))
    in_flight = sum(use.in_flight + sure[who] for who, use in uses.items())
    left = {who: use.wanted - sure[who] for who, use in uses.items()}
    granted = sure[own]
    takers = [
        (use.level + sure[who] * _step(use), who)
        for who, use in uses.items()
        if left[who] > 0 and use.pull
    ]
    heapify(takers)
    while takers:
        level, who = takers[0]
        use = uses[who]
        if in_flight >= slots + _num_ready(slots, use):
            break
        in_flight += 1
        left[who] -= 1
        granted += who == own
        if left[who]:
            heapreplace(takers, (level + _step(use), who))
        else:
            heappop(takers)
    return granted


def _parts(most: int, uses: Mapping[str, QueueUse]) -> dict[str, float]:
    """What each may have in flight by its weight, where nobody has more than it has and wants."""
    parts = {who: float(use.content) for who, use in uses.items()}
    open_ = {who for who, use in uses.items() if use.pull}
    left = max(0.0, most - sum(parts.values()))
    while open_:
        pull = sum(uses[who].pull for who in open_)
        able = {who: uses[who].in_flight + uses[who].wanted - uses[who].content for who in open_}
        satisfied = {who for who in open_ if able[who] <= left * uses[who].pull / pull}
        if not satisfied:
            shares = {who: left * uses[who].pull / pull for who in open_}
            return parts | {who: parts[who] + share for who, share in shares.items()}
        for who in satisfied:
            parts[who] += max(0, able[who])
            left -= max(0, able[who])
        open_ -= satisfied
    return parts
