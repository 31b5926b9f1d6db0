"""How orchestrators that see one another late share out the slots of one queue."""

from __future__ import annotations

import random
from collections import deque
from copy import deepcopy
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush

import pytest

from orchestrator.driving.shared_queue import Partners, SharedQueue, room
from orchestrator.driving.shares import Demand, Shares
from workers.processes.registry import QueueUse

#: A turn of an orchestrator's loop, and how often it tells of itself and looks at the others.
TURN, LOOK = 0.25, 1.0


@dataclass
class Study:
    weight: float
    seconds: float
    wanted: float = float("inf")
    begins: float = 0.0
    priority: int = 0
    max_slots: int | None = None
    asking: float = 0.0
    """How long its sampler takes for a suggestion; of a slow one, a turn asks for one."""
    is_refused: bool = False
    """Whether no worker takes its trials."""
    busy_until: float = 0.0
    given_back: int = 0
    in_flight: int = 0
    running: int = 0
    used: float = 0.0
    ended: int = 0

    def demand(self, now):
        if now >= self.busy_until:
            self.in_flight -= self.given_back
            self.wanted += self.given_back
            self.given_back = 0
        wanted = 0 if now < self.begins else int(min(1000, self.wanted))
        known = self.seconds if self.ended else None
        return Demand(
            wanted=wanted,
            in_flight=self.in_flight,
            trial_seconds=known,
            used_seconds=self.used,
            weight=self.weight,
            priority=self.priority,
            max_slots=self.max_slots,
            running=self.running,
            stuck=self.in_flight if self.is_refused else 0,
        )


@dataclass
class Orchestrator:
    name: str
    studies: dict[str, Study]
    shares: Shares = field(default_factory=Shares)
    queue: SharedQueue = field(default_factory=SharedQueue)
    told: QueueUse | None = None
    others: dict[str, QueueUse] = field(default_factory=dict)

    def turn(self, now, slots):
        """The studies whose trials it asks for, and when they are enqueued."""
        demands = {name: study.demand(now) for name, study in self.studies.items()}
        busy = {name for name, study in self.studies.items() if now < study.busy_until}
        use = self.queue.use(demands, slots, self.others, busy)
        most = room(slots, self.name, {**self.others, self.name: use}) if self.others else None
        able = {
            name: replace(each, wanted=0) if name in busy else each
            for name, each in demands.items()
        }
        asked = self.shares.allot(slots, able, most)
        begun = []
        for name, count in asked.items():
            study = self.studies[name]
            study.wanted -= count
            study.in_flight += count
            if count and study.asking:
                study.busy_until, study.given_back = now + study.asking, count - 1
            begun += [(max(now, study.busy_until), name)] * (count - study.given_back)
        self.told = use
        return begun


def simulate(sides, slots, seconds):  # noqa: C901 - a loop over events
    """Run for so long; the slot-seconds of each study, and the share of them that was used."""
    waiting, events = deque(), []
    for at, side in enumerate(sides):
        heappush(events, (0.1 * at, 0, at, side, "turn"))
        heappush(events, (0.37 * at, 1, at, side, "look"))
    idle, busy, order = slots, 0.0, 10
    spent: dict[str, float] = {}
    visible: dict[str, QueueUse] = {}
    while events:
        now, _, _, what, kind = heappop(events)
        if now > seconds:
            break
        order += 1
        if kind == "look":
            if what.told is not None:
                visible[what.name] = what.told
            what.others = {name: use for name, use in visible.items() if name != what.name}
            heappush(events, (now + LOOK, order, order, what, "look"))
            continue
        if kind == "turn":
            side = what
            heappush(events, (now + TURN, order, order, side, "turn"))
        elif kind == "asked":
            side, name = what
            if not side.studies[name].is_refused:
                waiting.append(what)
        else:
            side, name = what
            study = side.studies[name]
            study.in_flight, study.running = study.in_flight - 1, study.running - 1
            study.used, study.ended = study.used + study.seconds, study.ended + 1
            spent[name] = spent.get(name, 0.0) + study.seconds
            busy += study.seconds
            idle += 1
        for at, name in side.turn(now, slots):
            order += 1
            heappush(events, (at, order, order, (side, name), "asked"))
        while idle and waiting:
            its, name = waiting.popleft()
            idle -= 1
            its.studies[name].running += 1
            order += 1
            end = now + its.studies[name].seconds
            heappush(events, (end, order, order, (its, name), "end"))
    return spent, busy / (slots * seconds)


def sides_of(*groups):
    return [Orchestrator(f"o-{at}", dict(studies)) for at, studies in enumerate(groups)]


@pytest.mark.parametrize(("slots", "seconds"), [(1, 1.0), (2, 0.02), (2, 7.0), (8, 1.0)])
def test_studies_of_two_get_their_weights_and_no_slot_is_idle(slots, seconds):
    sides = sides_of(
        {"a": Study(1, seconds), "b": Study(3, seconds)},
        {"c": Study(2, seconds), "d": Study(6, seconds)},
    )
    spent, used = simulate(sides, slots, 20 if seconds < 1 else 240 * seconds)
    assert used > 0.95
    for name, weight in {"a": 1, "b": 3, "c": 2, "d": 6}.items():
        assert spent[name] / sum(spent.values()) == pytest.approx(weight / 12, rel=0.1), spent


def test_a_small_weight_has_its_part_of_a_slot():
    sides = sides_of({"a": Study(9, 5.0)}, {"b": Study(1, 5.0)})
    spent, used = simulate(sides, 2, 1500)
    assert used > 0.95
    assert spent["b"] / sum(spent.values()) == pytest.approx(0.1, rel=0.15)


def test_who_wants_less_leaves_the_rest_to_the_others():
    sides = sides_of({"a": Study(1, 1.0, wanted=50)}, {"b": Study(1, 1.0)})
    spent, used = simulate(sides, 4, 200)
    assert (spent["a"], used > 0.95) == (50, True)
    assert spent["b"] > 700


def test_one_that_comes_later_gets_its_part_at_once_and_no_more():
    sides = sides_of({"a": Study(1, 1.0)}, {"b": Study(1, 1.0, begins=200.0)})
    spent, used = simulate(sides, 4, 300)
    assert spent["b"] == pytest.approx(200, rel=0.15), "half of 100 seconds on four slots"
    assert used > 0.95


@pytest.mark.parametrize(
    ("studies", "its_seconds"),
    [
        ({"x": Study(1, 5.0, priority=1, max_slots=1), "y": Study(1, 5.0)}, 5.0),
        ({f"x-{at}": Study(1, 5.0, max_slots=1) for at in range(3)} | {"y": Study(1, 5.0)}, 5.0),
        ({"x": Study(20, 600.0, wanted=1), "y": Study(1, 5.0)}, 5.0),
        ({"x": Study(1, 5.0, is_refused=True), "y": Study(1, 5.0)}, 5.0),
        ({"x": Study(1, 5.0, priority=1), "y": Study(1, 5.0)}, 5.0),
        ({"y": Study(1, 30.0)}, 0.4),
        ({"y": Study(1, 5.0, asking=3.0)}, 5.0),
        ({"y": Study(1, 5.0, asking=10.0)}, 5.0),
    ],
    ids=[
        "one that may have one slot",
        "many that may have one slot",
        "one at its last trial",
        "one that no worker takes",
        "one that goes before",
        "long trials",
        "a slow sampler",
        "a slower sampler",
    ],
)
def test_who_drives_which_study_makes_no_difference(studies, its_seconds):
    groups, slots = [studies, {"z": Study(1, its_seconds)}], 6
    shared, shared_used = simulate(sides_of(*deepcopy(groups)), slots, 300)
    alone, used = simulate(sides_of(deepcopy(groups[0] | groups[1])), slots, 300)
    assert shared_used > used - 0.2
    for name, seconds in alone.items():
        assert shared[name] == pytest.approx(seconds, rel=0.2, abs=40.0), (shared, alone)


@pytest.mark.parametrize("seed", range(8))
def test_whoever_shares_nobody_starves_and_no_slot_is_idle(seed):
    draw = random.Random(seed)
    slots = draw.randint(1, 6)
    groups = [
        [(draw.choice([0.5, 1, 2, 5]), draw.choice([0.3, 1.0, 4.0])) for _ in range(number)]
        for number in draw.choices([1, 2, 3], k=draw.choice([2, 3]))
    ]
    sides = sides_of(
        *(
            {f"{at}-{number}": Study(*given) for number, given in enumerate(group)}
            for at, group in enumerate(groups)
        )
    )
    weights = {name: each.weight for side in sides for name, each in side.studies.items()}
    spent, used = simulate(sides, slots, 400)
    assert used > 0.9
    for name, weight in weights.items():
        due = 400 * slots * weight / sum(weights.values())
        assert spent.get(name, 0.0) == pytest.approx(due, rel=0.25, abs=25.0), (spent, weights)


def test_orchestrators_that_see_the_same_take_what_the_others_leave():
    def use(level, in_flight):
        fields = {"pull": 1.0, "seconds": 5.0, "wanted": 9, "running": 0, "stuck": 0}
        return QueueUse(level=level, in_flight=in_flight, **fields)

    uses = {"a": use(3.0, 1), "b": use(2.0, 0), "c": use(2.0, 0)}
    assert {who: room(2, who, uses) for who in uses} == {"a": 0, "b": 1, "c": 1}
    assert {who: room(5, who, uses) for who in uses} == {"a": 1, "b": 2, "c": 2}
    assert Partners("a", {"b": {"q": uses["b"]}, "c": {}}).of("q") == {"b": uses["b"]}
