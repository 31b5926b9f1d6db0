from __future__ import annotations

import pytest

from orchestrator.extension import extended
from orchestrator.status import StudyStatus
from orchestrator.submission.overrides import extension_fields
from orchestrator.views.ways_on import still_ends, used_up, ways_on
from workers.protocol.spec import StudySpec
from workers.protocol.states import StudyState

SPEC = StudySpec(
    name="s",
    trials=20,
    timeout=3600.0,
    budget={"slot_hours": 4.0, "gpu_hours": 2.0},
    stop={"target": 0.2, "patience": 9},
)


def status(**fields):
    given = {
        "study": "s",
        "state": StudyState.FINISHED,
        "objective": "o",
        "metrics": [],
        "directions": ["minimize"],
        "wanted": 22,
        "given": 2,
        "trials": {"complete": 22},
        "wall_seconds": 1.0,
        "busy_seconds": 1.0,
        "slots": 0,
    }
    return StudyStatus(**{**given, **fields})


def used(name, amount, allowed):
    return {"budgets": {name: {"used": amount, "allowed": allowed}}}


#: how a study ended -> what is advised, and the option of it
ENDS = {
    "all its trials": ({}, "trialfleet extend s --trials 40"),
    "a grid": ({"is_exhausted": True}, "widen its space"),
    "a target": ({"limit": "stop.target"}, "trialfleet extend s --set stop.target=VALUE"),
    "patience": ({"limit": "stop.patience"}, "trialfleet extend s --set stop.patience=N"),
    "failures": ({"limit": "stop.equal_failures"}, "mend what fails, then `trialfleet resume s`"),
    "time": (
        {"limit": "timeout", **used("wall_seconds", 3601.0, 3600.0)},
        "trialfleet extend s --set timeout=7202s",
    ),
    "slot-hours": (
        {"limit": "budget.slot_hours", **used("slot_hours", 4.0, 4.0)},
        "trialfleet extend s --set budget.slot_hours=8",
    ),
    "GPU-hours, as the storage tells": (
        {"limit": "budget.gpu_hours"},
        "trialfleet extend s --set budget.gpu_hours=MORE",
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_each_end_has_a_way_on(end):
    fields, advice = ENDS[end]
    assert advice in ways_on(status(**fields), "trialfleet extend s")


@pytest.mark.parametrize(
    "end",
    [
        end
        for end, (fields, _) in ENDS.items()
        if fields.get("limit") not in {None, "stop.equal_failures"}
    ],
)
def test_more_trials_alone_are_of_no_use_past_a_limit_and_what_is_advised_is(end):
    fields, advice = ENDS[end]
    found = status(**fields)
    assert still_ends(found, SPEC, extended(SPEC, {"trials": 99}))
    text = advice.partition("--set ")[2].replace("VALUE", "0.1").replace("=N", "=99")
    changes, _ = extension_fields(SPEC, None, [text.replace("MORE", "4")])
    after = extended(SPEC, changes)
    if "as the storage tells" not in end:  # what is used is not known there
        assert not still_ends(found, SPEC, after)
        assert used_up(found, after) is None
    is_budget = not fields["limit"].startswith("stop.")
    assert used_up(found, SPEC) == (fields["limit"] if is_budget else None)
