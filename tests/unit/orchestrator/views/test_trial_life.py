"""A trial's life, put together from its events and told in sentences."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState, create_trial

from orchestrator.storage.attributes import ATTR
from orchestrator.views.event_lines import line_of as event_line
from orchestrator.views.explain import explain
from orchestrator.views.trial_life import TrialLife, life_of, with_cost, with_results
from workers.protocol.events import Cause, EventKind, decode, encode, line_of

PROCESS = "box-a:b00t.1:4242:99"


def told(*events):
    """Events a second apart, of trial 3 where they name no other."""
    return [
        decode(
            line_of(f"{1_000_000_000_000 + 1000 * place}-0", encode(kind, **{"trial": 3, **given}))
        )
        for place, (kind, given) in enumerate(events)
    ]


def asked(**given):
    return EventKind.ASKED, given


def claimed(attempt=1, **given):
    where = {"process": PROCESS, "device": "7/cpu-1", "token": attempt}
    return EventKind.CLAIMED, {"attempt": attempt, **where, **given}


def requeued(cause, attempt=1, **given):
    return EventKind.REQUEUED, {"attempt": attempt, "cause": cause, "held_ms": 30_000, **given}


def ended(state, attempt=1, **given):
    return EventKind.ENDED, {"attempt": attempt, "state": state, "held_ms": 10_000, **given}


def sentences(*events, now=0.0):
    """What is told of trial 3; `now` in seconds after the first event."""
    found = told(*events)
    return "\n".join(explain(with_cost(life_of("s", 3, found), found, 1e9 + now)))


def test_a_trial_that_was_paused_at_rungs_is_told_with_what_it_reached_there():
    def paused(attempt, **given):
        told = {"state": "PAUSED", "held_ms": 5_000, "value": 0.5, **given}
        return EventKind.PAUSED, {"attempt": attempt, **told}

    first = [asked(), claimed(), paused(1, step=1, detail="at rung 0")]
    text = sentences(*first)
    assert "trial 3 of s: is paused at a rung, and goes on if it is promoted" in text
    assert "ended PAUSED after 5.0s: at rung 0" in text
    promoted = EventKind.PROMOTED, {"attempt": 1, "detail": "to rung 1"}
    assert "waits for attempt 2" in sentences(*first, promoted)
    second = [*first, promoted, claimed(2, step=1), paused(2, step=3, detail="at rung 1")]
    end = ended("PRUNED", 2, cause=Cause.WITHDRAWN, held_ms=None)
    text = sentences(*second, end)
    assert "trial 3 of s: PRUNED after 2 attempts" in text
    assert "made twice" not in text
    assert "cost: 10s of a slot: 10s trained to use\n" in text
    lines = [event_line(event).plain for event in told(*second)]
    assert [line.split()[-1] for line in lines if "rung" in line] == ["0", "1", "1"]
    assert "PAUSED 0.5" in lines[2]


def test_a_trial_that_was_killed_once_is_told_with_where_why_and_what_it_cost():
    text = sentences(
        asked(),
        claimed(),
        (EventKind.FIRST_STEP, {"attempt": 1, "after_ms": 3200}),
        (EventKind.CHECKPOINT, {"attempt": 1, "step": 40}),
        requeued(Cause.DIED, detail="process 4242 on box-a died", count=1, step=55, wait_ms=2000),
        claimed(2, step=40, device="GPU-1f2e"),
        ended("COMPLETE", 2, value=0.93, step=100),
    )
    for part in [
        "trial 3 of s: COMPLETE with 0.93 after 2 attempts",
        "begun 1.0s later",
        "on box-a in process 4242 on CPU slot 1",
        "made its first step after 3.2s, saved a checkpoint at step 40, got to step 55",
        "ended after 30s: its process died under it: process 4242 on box-a died (loss 1)",
        "went back to the queue, for 2.0s at least; the next attempt made 15 steps again",
        "on GPU-1f2e, from the checkpoint of step 40",
        "ended COMPLETE after 10s",
        # the checkpoint came two seconds after the claim, before the first step that was told
        "cost: 40s of a slot: 10s trained to use, 3.2s until first steps,",
        ", 27s trained for nothing or again (15 steps made twice)",
        "waited without a slot: 2.0s in the queue",
    ]:
        assert part in text, f"{part!r} is not in:\n{text}"


@pytest.mark.parametrize(
    ("event", "part"),
    [
        (requeued(Cause.FAILED, detail="ValueError: no", count=2),
         "the objective failed: ValueError: no (failure 2)"),
        (requeued(Cause.LEASE_LOST, count=1), "its lease ran out: the worker, its host"),
        (requeued(Cause.DRAINED), "its worker shut down, and it gave the trial back"),
        (requeued(Cause.PAUSED), "the study was paused, and it gave the trial back"),
        (requeued(Cause.OUT_OF_MEMORY, count=1), "it ran out of memory (failure 1)"),
        (requeued(Cause.BROKE, count=1), "a CUDA error broke its process (loss 1)"),
        (requeued(Cause.LACKING, detail="the hub is away"), "it lacked something: the hub is away"),
        (requeued("eaten"), "ended after 30s: eaten"),
        (ended("PRUNED", value=0.5), "trial 3 of s: PRUNED with 0.5"),
        (ended("CANCELLED", cause=Cause.CANCELLED), "ended CANCELLED after 10s: the study was"),
        (ended("FAILED", cause=Cause.TIMED_OUT), "it held slots for as long as it may"),
        (ended("DEAD", cause=Cause.DIED, count=10), "process died under it (loss 10)"),
    ],
)  # fmt: skip
def test_each_cause_has_its_sentence(event, part):
    assert part in sentences(asked(), claimed(), event)


def test_a_trial_that_waits_runs_or_was_never_begun_is_told_as_that():
    assert "trial 3 of s: waits to begin" in sentences(asked())
    assert "trial 3 of s: runs, in attempt 1" in sentences(asked(), claimed())
    assert "waits for attempt 2" in sentences(asked(), claimed(), requeued(Cause.DRAINED))
    withdrawn = EventKind.ENDED, {"state": "CANCELLED", "cause": Cause.WITHDRAWN, "detail": "time"}
    assert "nobody is to begin it any more: time" in sentences(asked(), withdrawn)
    again = sentences(asked(), claimed(), requeued(Cause.DRAINED), withdrawn)
    assert "nobody is to begin it any more: time" in again
    assert "ended after 30s: its worker shut down" in again


def test_a_trial_that_was_promoted_says_from_which_rung_to_which():
    paused = {"attempt": 1, "state": "PAUSED", "held_ms": 3000, "step": 3, "detail": "at rung 0"}
    up_to_there = asked(), claimed(), (EventKind.PAUSED, paused)
    assert "is paused at a rung" in sentences(*up_to_there)
    promoted = EventKind.PROMOTED, {"attempt": 1, "detail": "to rung 1"}
    text = sentences(*up_to_there, promoted, claimed(2, step=3), ended("COMPLETE", 2))
    assert "ended PAUSED after 3.0s: at rung 0\n  promoted to rung 1 at " in text
    assert "COMPLETE after 2 attempts" in text


def test_what_was_dropped_is_not_made_up():
    text = sentences(requeued(Cause.DIED, 4), claimed(5))
    assert "attempt 4 began\n" in text
    assert "asked for" not in text


def test_the_attempts_of_a_record_that_redis_lost_are_counted_on():
    text = sentences(
        asked(),
        claimed(),
        requeued(Cause.FAILED, detail="E: no", count=1),
        claimed(2, process="box-a:b00t.1:5555:99"),
        (EventKind.REPORTED, {"attempt": 2, "step": 7, "value": 0.5}),
        asked(step=5),
        claimed(1, step=5, process="box-b:b00t.1:77:99"),
        (EventKind.FIRST_STEP, {"attempt": 1, "after_ms": 1500}),
        requeued(Cause.DIED, 1, step=9, count=1),
        claimed(2, step=8, process="box-b:b00t.1:88:99"),
        ended("COMPLETE", 2, value=0.25),
    )
    starts = [f"attempt {number} began" for number in (1, 2, 3, 4)]
    assert [line[:15] for line in text.split("\n") if line.startswith("attempt")] == starts
    for part in [
        "trial 3 of s: COMPLETE with 0.25 after 4 attempts",
        "begun 1.0s later",
        "its record was written 2 times: Redis had lost its data",
        "in process 4242 on CPU slot 1\n  ended after 30s: the objective failed",
        "in process 5555 on CPU slot 1\n  it reported 0.5 at step 7\nattempt 3",
        "on box-b in process 77 on CPU slot 1, from the checkpoint of step 5\n  it made its first",
        "in process 88 on CPU slot 1, from the checkpoint of step 8\n  ended COMPLETE after 10s",
        "10s trained to use, 1.5s until first steps, 1m00s trained for nothing or again (3 steps",
    ]:
        assert part in text, f"{part!r} is not in:\n{text}"


def test_a_redis_that_was_taken_back_claims_some_attempts_again():
    first = asked(), claimed(), requeued(Cause.DIED), claimed(2, token=5)
    text = sentences(*first, ended("FAILED", 2), claimed(2, token=6))
    assert "trial 3 of s: runs, in attempt 3" in text
    assert "ended at" not in text
    assert "cost: 40s" in text
    assert "COMPLETE after 4" in sentences(
        *first, requeued(Cause.DIED, 2), claimed(2, token=6), requeued(Cause.DIED, 2), claimed(3),
        ended("COMPLETE", 3),
    )  # fmt: skip


def test_an_end_that_was_lost_with_the_record_is_none():
    lost = asked(), claimed(), ended("COMPLETE", value=0.5), asked()
    assert "trial 3 of s: waits for attempt 2" in sentences(*lost)
    text = sentences(*lost, claimed())
    assert "trial 3 of s: runs, in attempt 2" in text
    assert "ended at" not in text
    withdrawn = EventKind.ENDED, {"attempt": 0, "state": "CANCELLED", "cause": Cause.WITHDRAWN}
    text = sentences(asked(), claimed(), asked(), withdrawn)
    assert "ended CANCELLED" not in text
    assert "nobody is to begin it any more\ncost: 1.0s of a slot" in text


def test_a_trial_that_was_written_again_as_paused_is_promoted_from_where_it_stood():
    paused = {"attempt": 1, "state": "PAUSED", "held_ms": 3000, "step": 3, "detail": "at rung 0"}
    promoted = EventKind.PROMOTED, {"attempt": 0, "detail": "to rung 1"}
    again = asked(), claimed(), (EventKind.PAUSED, paused), asked(state="PAUSED", step=3)
    assert "is paused at a rung" in sentences(*again)
    text = sentences(*again, promoted, claimed(1, step=3), ended("COMPLETE", 1))
    assert "ended PAUSED after 3.0s: at rung 0\n  promoted to rung 1 at " in text
    assert "COMPLETE after 2 attempts" in text
    assert "made twice" not in text


def test_a_result_that_is_handed_in_anew_repeats_no_step():
    made = EventKind.REPORTED, {"attempt": 1, "step": 9, "value": 0.5}
    text = sentences(asked(), claimed(), made, asked(), claimed(device=""), ended("COMPLETE"))
    assert "COMPLETE after 2 attempts" in text
    assert "again" not in text
    assert "twice" not in text


def test_the_attempt_that_is_waited_for_has_the_number_that_it_will_have():
    assert "waits for attempt 5" in sentences(requeued(Cause.DIED, 4))
    assert "COMPLETE after 5 attempts" in sentences(requeued(Cause.DIED, 4), ended("COMPLETE", 5))


def test_a_trial_that_is_tried_again_and_one_that_tries_again_say_so():
    trials = [
        create_trial(state=state, value=value, user_attrs={f"{ATTR}{k}": v for k, v in own.items()})
        for state, value, own in [
            (TrialState.FAIL, None, {"state": "DEAD", "error": "E: no"}),
            (TrialState.COMPLETE, 0.5, {"retries": 0, "order": "retry:0"}),
            (TrialState.COMPLETE, 0.5, {"order": "x"}),
            (TrialState.WAITING, None, {"order": "y"}),
        ]
    ]
    texts = [
        "\n".join(explain(with_results(TrialLife(study="s", trial=number), trials)))
        for number in range(4)
    ]
    assert "DEAD" in texts[0]
    assert "it was tried again as trial 1" in texts[0]
    assert "no event of it is left" in texts[0]
    assert "error: E: no" in texts[0]
    assert "it tries trial 0 again" in texts[1]
    assert "people asked for these parameters" in texts[2]
    assert "waits to begin" in texts[3]


def test_events_of_other_trials_and_studies_are_passed_over():
    life = life_of("s", 3, told(asked(), asked(trial=4), (EventKind.BORN, {"process": PROCESS})))
    assert (life.num_asked, life.attempts) == (1, [])


KINDS = st.sampled_from(EventKind) | st.just("cloned")
FIELDS = st.fixed_dictionaries(
    {"trial": st.sampled_from([3, 4])},
    optional={
        **dict.fromkeys(["attempt", "step", "held_ms", "count"], st.integers(0, 9)),
        "cause": st.sampled_from(Cause) | st.just("eaten"),
        "state": st.sampled_from(["COMPLETE", "DEAD", "odd"]),
        "value": st.floats(),
        "process": st.sampled_from([PROCESS, "odd", "a:b:c:d"]),
        "device": st.sampled_from(["7/cpu-0", "GPU-1", "\x1b[31m"]),
        "detail": st.text(max_size=20),
    },
)


# the first examples of a process load what they need
@given(st.lists(st.tuples(KINDS, FIELDS), max_size=12))
def test_any_events_in_any_order_are_told_and_no_terminal_acts_on_them(events):
    found = [
        decode(json.dumps({"id": f"{place}-0", "kind": kind, **fields}))
        for place, (kind, fields) in enumerate(events)
    ]
    lines = [*explain(life_of("s", 3, found)), *(event_line(event).plain for event in found)]
    assert all(line.isprintable() for line in lines), lines
