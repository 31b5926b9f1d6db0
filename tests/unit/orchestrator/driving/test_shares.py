from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.driving.shares import (
    MAX_READY_PER_SLOT,
    Demand,
    Shares,
    num_per_hint,
    num_ready,
)
from workers.protocol.study_options import ShareSpec

ONE = Demand(wanted=10**6, in_flight=0, trial_seconds=1.0, used_seconds=0.0)


@pytest.mark.parametrize(
    ("wanted", "in_flight", "slots", "count"),
    [
        (10, 0, 2, 3),
        (7, 3, 2, 0),
        (7, 2, 2, 1),
        (1, 2, 2, 1),
        (0, 0, 2, 0),
        (9, 0, 0, 0),
        (9, 5, 2, 0),
    ],
)
def test_one_study_has_as_many_in_flight_as_slots_can_take_and_one(wanted, in_flight, slots, count):
    demand = Demand(wanted, in_flight, trial_seconds=100.0, used_seconds=0.0)
    assert Shares().allot(slots, {"s": demand}) == {"s": count}


@pytest.mark.parametrize(
    ("slots", "seconds", "ready"),
    [
        (2, None, 1),
        (2, 100.0, 1),
        (2, 0.2, 2),
        (2, 0.1, 4),
        (2, 0.0, 2 * MAX_READY_PER_SLOT),
        (64, 0.2, 79),
    ],
)
def test_short_trials_wait_ready_for_as_long_as_the_orchestrator_may_take(slots, seconds, ready):
    assert num_ready(slots, seconds) == ready


@pytest.mark.parametrize(
    ("seconds", "count"),
    [(None, 1), (100.0, 1), (0.03, 1), (0.02, 2), (0.0, MAX_READY_PER_SLOT // 2)],
)
def test_one_hint_keeps_a_slot_busy_for_a_moment_at_most(seconds, count):
    assert num_per_hint(seconds, 100, 1) == count


@pytest.mark.parametrize(
    ("count", "slots", "most"), [(4, 4, 1), (7, 4, 1), (9, 4, 2), (3, 4, 1), (5, 1, 5), (5, 0, 5)]
)
def test_one_hint_holds_no_more_than_a_slots_share_of_what_is_announced(count, slots, most):
    assert num_per_hint(0.001, count, slots) == most


class Queue:
    """Studies on some slots: trials end in the order in which they were asked for."""

    def __init__(self, slots, lengths, **demands):
        self.slots, self.lengths, self.demands = slots, lengths, dict(demands)
        self.shares = Shares()
        self.ready, self.running, self.clock = [], [], 0.0
        self.seconds = dict.fromkeys(demands, 0.0)

    def step(self):
        for name, count in self.shares.allot(self.slots, self.demands).items():
            self.demands[name] = self.demands[name].granted(count)
            self.ready += [name] * count
        while self.ready and len(self.running) < self.slots:
            name = self.ready.pop(0)
            self.running.append((self.clock + self.lengths[name], name))
        self.running.sort()
        self.clock, name = self.running.pop(0)
        self.seconds[name] += self.lengths[name]
        demand = self.demands[name]
        self.demands[name] = replace(
            demand,
            in_flight=demand.in_flight - 1,
            used_seconds=demand.used_seconds + self.lengths[name],
            trial_seconds=self.lengths[name],
        )


def run(slots, num, lengths, **demands):
    queue = Queue(slots, lengths, **demands)
    for _ in range(num):
        queue.step()
    return queue


@settings(max_examples=15)
@given(
    weights=st.lists(st.sampled_from([1.0, 2.0, 5.0]), min_size=2, max_size=20),
    lengths=st.lists(st.sampled_from([0.01, 0.1, 1.0, 3.0]), min_size=20, max_size=20),
)
# the heavy one had all in flight that it may have, and the light one what was left of the queue
@example(weights=[1.0, 5.0], lengths=[0.01, 0.1])
def test_slot_seconds_go_by_the_weights_whatever_the_trials_take(weights, lengths):
    names = [f"s{index}" for index in range(len(weights))]
    length = dict(zip(names, lengths, strict=False))
    demands = {
        name: replace(ONE, weight=weight) for name, weight in zip(names, weights, strict=True)
    }
    queue = run(2, 2000, length, **demands)
    total, pull = sum(queue.seconds.values()), sum(weights)
    for name, weight in zip(names, weights, strict=True):
        # a trial cannot be split: up to what is in flight beside the share
        slack = 0.02 * total + 4 * max(length.values())
        assert queue.seconds[name] == pytest.approx(total * weight / pull, abs=slack)


def test_a_study_that_comes_later_is_next_and_catches_up_on_nothing():
    queue = Queue(2, {"old": 1.0, "new": 1.0}, old=ONE)
    for _ in range(100):
        queue.step()
    queue.demands["new"] = ONE
    queue.seconds["new"] = 0.0
    before = queue.seconds["old"]
    queue.step()
    assert "new" in [*queue.ready, *[name for _, name in queue.running]], "within one trial's time"
    for _ in range(200):
        queue.step()
    assert queue.seconds["new"] == pytest.approx(queue.seconds["old"] - before, abs=4.0)


@pytest.mark.parametrize("priority", [-5, 5])
def test_the_least_weight_that_a_study_may_have_keeps_the_loop_from_nobody(priority):
    """One below it, which floats cannot count in, ended the loop for all studies."""
    least = ShareSpec(weight=1e-6, priority=priority)
    low = replace(ONE, weight=least.weight, priority=least.priority)
    queue = run(2, 2000, {"low": 1.0, "other": 1.0}, low=low, other=replace(ONE, weight=1e6))
    assert queue.seconds["low"] > 0
    assert queue.seconds["other"] > queue.seconds["low"]
    with pytest.raises(ValidationError):
        ShareSpec(weight=9e-7)


def test_a_priority_goes_first_and_starves_nobody():
    queue = run(2, 2000, {"low": 1.0, "high": 1.0}, low=ONE, high=replace(ONE, priority=1))
    assert queue.seconds["high"] / queue.seconds["low"] == pytest.approx(20.0, rel=0.2)


def test_no_more_of_a_study_runs_than_its_most_slots_and_the_others_have_the_rest():
    queue = Queue(4, {"a": 1.0, "b": 1.0}, a=replace(ONE, max_slots=1), b=ONE)
    for _ in range(400):
        queue.step()
        assert queue.demands["a"].in_flight <= 1
    assert queue.seconds["b"] / queue.seconds["a"] == pytest.approx(3.0, rel=0.2)


def test_whoever_lifts_a_bound_gives_its_share_from_then_on_and_nothing_for_before():
    queue = Queue(4, {"a": 1.0, "b": 1.0}, a=replace(ONE, max_slots=1), b=ONE)
    for _ in range(400):
        queue.step()
    queue.demands["a"] = replace(queue.demands["a"], max_slots=None)
    queue.seconds = dict.fromkeys(queue.seconds, 0.0)
    for _ in range(40):
        queue.step()
    assert queue.seconds["a"] / queue.seconds["b"] == pytest.approx(1.0, rel=0.4)


def test_trials_that_no_worker_takes_keep_idle_slots_from_no_other_study():
    nobodys = replace(ONE, in_flight=3, stuck=3)
    assert Shares().allot(2, {"nobodys": nobodys, "good": ONE}) == {"nobodys": 0, "good": 3}
    busy = replace(ONE, in_flight=3, stuck=1, running=2)
    assert Shares().allot(2, {"busy": busy, "good": ONE}) == {"busy": 0, "good": 0}
