"""What a trial cost, by its events: useful, warming, lost, running, and its waiting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.views.explain import explain
from orchestrator.views.slot_time import slot_time
from orchestrator.views.trial_cost import TrialCost, cost_of
from orchestrator.views.trial_life import life_of, with_cost, with_results
from workers.protocol.events import Cause, Event, EventKind


def event(seconds, kind, trial=3, **fields):
    return Event(id=f"{round(seconds * 1000)}-0", kind=kind, trial=trial, **fields)


def claimed(seconds, attempt=1, **fields):
    where = {"process": "box:boot:7:9", "device": "cpu-0"}
    return event(seconds, EventKind.CLAIMED, attempt=attempt, **where, **fields)


def stopped(seconds, kind, held, first=0.0, attempt=1, **fields):
    given = {"held_ms": round(held * 1000), "after_ms": round(first * 1000)}
    return event(seconds, kind, attempt=attempt, **given, **fields)


ASKED = event(100, EventKind.ASKED)
KILLED = [
    ASKED,
    claimed(103),
    event(108, EventKind.FIRST_STEP, attempt=1, after_ms=1000),
    event(109, EventKind.CHECKPOINT, attempt=1, step=5),
    stopped(113, EventKind.REQUEUED, 10, 1, cause=Cause.DIED, wait_ms=2000, step=9),
]
RESUMED = [*KILLED, claimed(117, 2, step=5)]
LOST = [*KILLED[:4], event(113, EventKind.ASKED, step=5)]
PAUSED = [
    ASKED,
    claimed(101),
    stopped(105, EventKind.PAUSED, 4, 1, state="PAUSED", detail="at rung 0"),
]


def cost(**seconds):
    return {
        **TrialCost().model_dump(),
        **{f"{name}_seconds": each for name, each in seconds.items()},
    }


@pytest.mark.parametrize(
    ("events", "now", "expected"),
    [
        ([], 200, {}),
        ([ASKED], 107, {"queued": 7}),
        ([ASKED, claimed(103)], 105, {"queued": 3, "running": 2}),
        (KILLED[:3], 110, {"queued": 3, "warming": 1, "running": 6}),
        (KILLED, 114, {"queued": 4, "useful": 5, "warming": 1, "lost": 4}),
        (RESUMED, 119, {"queued": 7, "useful": 5, "warming": 1, "lost": 4, "running": 2}),
        (
            [*RESUMED, stopped(127, EventKind.ENDED, 10, 0.5, 2, state="COMPLETE")],
            None,
            {"queued": 7, "useful": 14.5, "warming": 1.5, "lost": 4},
        ),
        (
            [*RESUMED, stopped(127, EventKind.ENDED, 10, 0.5, 2, state="FAILED")],
            None,
            {"queued": 7, "useful": 0, "warming": 1.5, "lost": 18.5},
        ),
        (
            [*RESUMED, event(117.1, EventKind.BEGAN_ANEW, attempt=2, step=5, detail="not there")],
            118,
            {"queued": 7, "useful": 0, "warming": 1, "lost": 9, "running": 1},
        ),
        (PAUSED, 115, {"queued": 1, "warming": 1, "useful": 3, "paused": 10}),
        (
            [
                *PAUSED,
                event(125, EventKind.PROMOTED, attempt=1, detail="to rung 1"),
                claimed(127, 2, step=3),
                stopped(130, EventKind.ENDED, 3, 0, 2, state="COMPLETE"),
            ],
            None,
            {"queued": 3, "warming": 1, "useful": 6, "paused": 20},
        ),
        (
            [*PAUSED, event(140, EventKind.ASKED, state="PAUSED"), event(145, EventKind.ENDED)],
            None,
            {"queued": 1, "warming": 1, "lost": 3, "paused": 40},
        ),
        (
            [*PAUSED, event(145, EventKind.ENDED, state="PRUNED", cause=Cause.WITHDRAWN)],
            None,
            {"queued": 1, "warming": 1, "useful": 3, "paused": 40},
        ),
        ([stopped(127, EventKind.ENDED, 10, state="COMPLETE")], None, {}),
        (LOST, 120, {"queued": 10, "useful": 5, "warming": 1, "lost": 4}),
        (
            [*LOST, claimed(117, step=5)],
            119,
            {"queued": 7, "useful": 5, "warming": 1, "lost": 4, "running": 2},
        ),
        ([ASKED, claimed(103), event(113, EventKind.ASKED)], 120, {"queued": 10, "lost": 10}),
        (  # whoever had it hands in what it came to
            [
                ASKED,
                claimed(103),
                event(113, EventKind.ASKED),
                event(115, EventKind.CLAIMED, attempt=1, process="box:boot:7:9"),
                stopped(116, EventKind.ENDED, 1, state="COMPLETE"),
            ],
            None,
            {"queued": 5, "useful": 11},
        ),
        (  # Redis was taken back to before the first claim
            [ASKED, claimed(103), claimed(110), stopped(120, EventKind.ENDED, 10, state="PRUNED")],
            None,
            {"queued": 3, "lost": 7, "useful": 10},
        ),
        (
            [*PAUSED[:2], event(105, EventKind.PROMOTED, attempt=1)],
            109,
            {"queued": 5, "lost": 4},
        ),
    ],
)
def test_what_a_trial_cost_is_told_by_what_became_of_it(events, now, expected):
    others = [event(1, EventKind.ASKED, 4), event(2, EventKind.CLAIMED, 4)]
    found = cost_of(3, [*others, *events], now)
    assert found.model_dump() == pytest.approx(cost(**expected))


@pytest.mark.parametrize("state", ["COMPLETE", "FAILED"])
def test_it_is_what_a_report_has_of_the_same_events(state):
    events = [*RESUMED, stopped(127, EventKind.ENDED, 10, 0.5, 2, state=state)]
    found, spent = cost_of(3, events, None), slot_time(events, None)
    assert found.useful_seconds == pytest.approx(spent.trained)
    assert found.warming_seconds == pytest.approx(spent.warming)
    assert found.lost_seconds == pytest.approx(spent.lost)


#: Of these the trial's record knows who holds it, as before.
KEEPING = {
    EventKind.FIRST_STEP, EventKind.REPORTED, EventKind.CHECKPOINT, EventKind.BEGAN_ANEW,
}  # fmt: skip
KINDS = [
    *sorted(KEEPING), EventKind.ASKED, EventKind.CLAIMED, EventKind.REQUEUED, EventKind.PAUSED,
    EventKind.PROMOTED, EventKind.ENDED,
]  # fmt: skip
STATES = ["COMPLETE", "FAILED", "PAUSED"]


@given(st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(STATES), st.booleans())))
def test_no_second_is_counted_twice_whatever_order_events_come_in(told):
    events, claimed_at = [], None
    for place, (kind, state, has_step) in enumerate(told):
        at, given = 100 + 3 * place, {"step": 5} if has_step else {}
        held = 0 if claimed_at is None else at - claimed_at
        events.append(stopped(at, kind, held, 1, process="box:boot:7:9", state=state, **given))
        if kind not in KEEPING:
            claimed_at = at if kind == EventKind.CLAIMED else None
    found = cost_of(3, events, 100 + 3 * len(told)).model_dump()
    assert min(found.values()) >= -1e-6
    assert sum(found.values()) <= 3 * len(told) + 1e-6


def sentences(events, now):
    return list(explain(with_cost(life_of("s", 3, events), events, now)))


def test_the_sentences_tell_the_cost_of_a_trial_that_runs_and_of_one_that_waits():
    assert (
        "cost: 7.0s of a slot: 1.0s until first steps, 6.0s in the attempt that runs"
        in sentences(KILLED[:3], 110)
    )
    told = sentences(RESUMED, 119)
    assert (
        "cost: 12s of a slot: 5.0s trained to use, 1.0s until first steps,"
        " 4.0s trained for nothing or again (4 steps made twice), 2.0s in the attempt that runs"
    ) in told
    assert "waited without a slot: 7.0s in the queue" in told
    paused = sentences(PAUSED, 115)
    assert "waited without a slot: 1.0s in the queue, 10s paused at rungs" in paused
    assert not [line for line in sentences([ASKED], 100) if line.startswith(("cost", "waited"))]


def test_a_trial_that_the_results_have_as_ended_goes_on_no_more():
    from optuna.trial import TrialState, create_trial

    trials = [create_trial(state=TrialState.FAIL)] * 4
    life = with_results(life_of("s", 3, KILLED[:3]), trials)
    assert with_cost(life, KILLED[:3], 1e6).cost == TrialCost(queued_seconds=3)
