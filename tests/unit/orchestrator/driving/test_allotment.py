"""Who may ask for trials, from turn to turn."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from orchestrator.driving.allotment import Allotment
from orchestrator.driving.queues import Queues
from orchestrator.driving.shares import Demand, Shares

WANTS = Demand(wanted=10, in_flight=0, trial_seconds=60.0, used_seconds=0.0)


@pytest.fixture
def allots(monkeypatch):
    """How often slots were shared out."""
    calls, allot = [], Shares.allot

    def counted(shares, slots, *given):
        calls.append(slots)
        return allot(shares, slots, *given)

    monkeypatch.setattr(Shares, "allot", counted)
    return calls


def driver(demand):
    made = SimpleNamespace(queue="default", now=demand)
    made.demand = lambda *, is_draining: replace(made.now, wanted=0) if is_draining else made.now
    return made


def slots_of(count):
    queues = Queues()
    queues.slots = lambda queue: count
    return queues


def test_what_was_asked_in_vain_is_shared_out_again_only_when_something_has_changed(allots):
    allotment, drivers = Allotment(), {"a": driver(WANTS), "b": driver(WANTS)}
    for name in drivers:
        allotment.begin(name)
        allotment.look_again(name)

    def grant(slots=2, **given):
        asked = {"getting_on": drivers, "idle": drivers, "is_draining": False, **given}
        found = allotment.grant(queues=slots_of(slots), **asked)
        return {name: count for name, count in found.items() if count}

    assert sum(grant().values()) == 3, "two run, and one waits ready"
    for name, each in drivers.items():
        each.now = replace(WANTS, wanted=9, in_flight=2 if name == "a" else 1)
        allotment.look_again(name)
    assert grant() == {}
    num_asked = len(allots)
    assert grant() == {}
    allotment.look_again("a")  # it had a turn, and wants what it did
    assert grant() == {}
    assert len(allots) == num_asked

    drivers["a"].now = replace(WANTS, wanted=9, in_flight=1)
    assert grant() == {}, "it was not said to have changed"
    allotment.look_again("a")
    assert sum(grant().values()) == 1
    drivers["a"].now = replace(WANTS, wanted=8, in_flight=2)
    allotment.look_again("a")
    assert grant() == {}
    assert sum(grant(slots=3).values()) == 1, "a slot came"


def test_a_study_that_was_at_a_turn_gets_its_part_when_it_has_returned(allots):
    allotment, drivers = Allotment(), {"a": driver(WANTS)}
    allotment.begin("a")
    allotment.look_again("a")
    for idle, count in (({}, 0), ({}, 0), (drivers, 3)):
        asked = {"getting_on": drivers, "idle": idle, "is_draining": False}
        assert allotment.grant(queues=slots_of(2), **asked).get("a", 0) == count
    assert len(allots) == 2
