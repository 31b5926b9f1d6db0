from __future__ import annotations

import pytest

from orchestrator.views.slot_time import slot_time
from workers.protocol.events import Cause, Event, EventKind


def event(seconds, kind, trial=0, **fields):
    return Event(id=f"{round(seconds * 1000)}-0", kind=kind, trial=trial, **fields)


def claimed(seconds, trial=0, device="cpu-0"):
    return event(seconds, EventKind.CLAIMED, trial, device=device, process="box:boot:7:9")


def ended(seconds, trial=0, held=1.0, first=0.0, **fields):
    given = {"state": "COMPLETE", "held_ms": int(held * 1000), "after_ms": int(first * 1000)}
    return event(seconds, EventKind.ENDED, trial, **{**given, **fields})


def test_the_time_of_a_slot_is_trained_warming_lost_and_idle():
    spent = slot_time(
        [
            claimed(100),
            event(104, EventKind.CHECKPOINT, step=3),
            event(110, EventKind.REQUEUED, cause=Cause.DIED, held_ms=10_000, after_ms=1000),
            claimed(115),
            ended(125, held=10, first=2),
            claimed(130, 1),
            ended(135, 1, held=5, first=1, state="FAILED"),
        ],
        now=None,
    )
    assert spent.warming == pytest.approx(1 + 2 + 1)
    assert spent.trained == pytest.approx(3 + 8)
    assert spent.lost == pytest.approx(6 + 4)
    assert spent.idle == pytest.approx(5 + 5)
    assert spent.total == pytest.approx(35)
    (slot,) = spent.slots
    assert (slot.slot, slot.attempts, slot.held_seconds) == ("box CPU slot 0", 3, 25)


def test_an_attempt_that_runs_is_told_as_one_while_the_study_runs():
    events = [claimed(10), ended(12, held=2), claimed(13, 1), claimed(11, 2, "cpu-1")]
    spent = slot_time(events, now=20)
    assert spent.running == pytest.approx(7 + 9)
    assert spent.idle == pytest.approx(1)
    assert slot_time(events, now=None).running == 0


def test_another_study_of_the_name_begins_anew():
    def driven(at, name):
        return event(at, EventKind.DRIVEN, trial=None, generation=name)

    one = [driven(1, "a"), claimed(2), ended(4, held=2)]
    assert slot_time(one, None).trained == 2
    assert slot_time([*one, driven(5, "a")], None).trained == 2, "the same, driven on"
    assert slot_time([*one, driven(5, "b")], None).total == 0


def test_events_whose_beginning_is_gone_are_no_time():
    assert slot_time([ended(5, held=2), event(6, EventKind.REQUEUED, held_ms=9)], None).total == 0
    assert slot_time([], 5.0).slots == []


def test_an_attempt_whose_record_was_lost_held_its_slot_until_it_was_written_anew():
    lost = [claimed(10), event(20, EventKind.ASKED)]
    spent = slot_time(lost, now=24)
    assert (spent.lost, spent.running) == (pytest.approx(10), 0)
    spent = slot_time([*lost, claimed(25), ended(35, held=10)], now=None)
    assert (spent.lost, spent.trained, spent.idle) == pytest.approx((10, 10, 5))
    assert [slot.held_seconds for slot in spent.slots] == [20]
