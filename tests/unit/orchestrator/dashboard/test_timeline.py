from __future__ import annotations

import pytest

from orchestrator.dashboard import timeline as module
from orchestrator.dashboard.timeline import Timeline
from workers.protocol.events import Cause, Event, EventKind


def event(seconds, kind, trial=0, **fields):
    return Event(id=f"{round(seconds * 1000)}-0", kind=kind, trial=trial, **fields)


def claimed(seconds, trial=0, device="cpu-0", **fields):
    process = fields.pop("process", "box:boot:7:9")
    return event(seconds, EventKind.CLAIMED, trial, device=device, process=process, **fields)


def bars(timeline, revision=0):
    return timeline.since(revision)["bars"]


def test_a_kill_and_its_recovery_are_two_bars_of_one_trial():
    timeline = Timeline()
    timeline.take(
        [
            claimed(10, attempt=1, process="box:boot:7:9"),
            event(11, EventKind.FIRST_STEP, attempt=1, after_ms=1000),
            event(14, EventKind.REQUEUED, attempt=1, cause=Cause.DIED, count=1),
            claimed(15, attempt=2, step=3, process="box:boot:8:9", device="cpu-1"),
            event(19, EventKind.ENDED, attempt=2, state="COMPLETE", value=0.5),
        ]
    )
    first, second = bars(timeline)
    assert (first["end"], first["begun"], first["first_step"], first["ended"]) == (
        "DIED",
        10,
        11,
        14,
    )
    assert "its process died under it (loss 1)" in first["why"]
    assert (second["attempt"], second["end"], second["from_step"]) == (2, "COMPLETE", 3)
    assert (first["lane"], second["lane"]) == ("box CPU slot 0", "box CPU slot 1")


def test_a_bar_whose_record_was_lost_ends_where_it_was_written_anew():
    timeline = Timeline()
    timeline.take([claimed(10, attempt=1), event(20, EventKind.ASKED), claimed(25, attempt=1)])
    first, second = bars(timeline)
    assert (first["ended"], first["end"], first["why"]) == (20, "LOST", "Redis lost its record")
    assert (second["begun"], second.get("ended")) == (25, None)


def test_a_process_that_follows_on_a_device_is_on_the_same_lane():
    timeline = Timeline()
    timeline.take(
        [
            claimed(1, process="box:boot:7:9"),
            event(2, EventKind.ENDED, state="PRUNED"),
            claimed(3, 1, process="box:boot:8:9"),
            claimed(3, 2, device="GPU-1f", process="other:boot:7:9"),
            claimed(3, 3, device=None, process="third:boot:7:9"),
        ]
    )
    lanes = [bar["lane"] for bar in bars(timeline)]
    assert lanes == ["box CPU slot 0", "box CPU slot 0", "other GPU-1f", "third process 7"]


def test_only_what_changed_is_told_again():
    timeline = Timeline()
    timeline.take([claimed(1), claimed(1, 1)])
    seen = timeline.since(0)["revision"]
    assert bars(timeline, seen) == []
    timeline.take([event(2, EventKind.ENDED, state="FAILED", cause=Cause.FAILED, detail="no")])
    (changed,) = bars(timeline, seen)
    assert (changed["trial"], changed["end"], changed["why"]) == (
        0,
        "FAILED",
        "the objective failed: no",
    )


def test_what_cannot_be_put_together_is_left_out_and_nothing_is_made_up():
    timeline = Timeline()
    timeline.take(
        [
            event(1, EventKind.ENDED, 5, state="COMPLETE"),
            event(1, EventKind.REPORTED, 6, step=1, value=0.1),
            event(1, "of a newer release", 7),
            Event(id="1-1", kind=EventKind.WISHED, wish="pause"),
            claimed(2, 8, attempt=1),
            claimed(4, 8, attempt=2),
        ]
    )
    first, second = bars(timeline)
    assert (first["end"], first["ended"]) == ("LOST", 4)
    assert second["end"] == "RUNNING"
    assert "ended" not in second


def test_another_study_of_the_same_name_begins_with_an_empty_time_line():
    timeline = Timeline()
    driven = Event(id="1-0", kind=EventKind.DRIVEN, generation="a")
    timeline.take(
        [driven, claimed(2), driven.model_copy(update={"generation": "b"}), claimed(5, 1)]
    )
    assert [bar["trial"] for bar in bars(timeline)] == [1]


def test_so_many_bars_are_kept_at_most(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MAX_BARS", 10)
    timeline = Timeline()
    for trial in range(25):
        timeline.take(
            [claimed(trial, trial), event(trial + 0.5, EventKind.ENDED, trial, state="X")]
        )
    found = timeline.since(0)
    assert [bar["trial"] for bar in found["bars"]] == list(range(15, 25))
    assert found["first"] == 16
