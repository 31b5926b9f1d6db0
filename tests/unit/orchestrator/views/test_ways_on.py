from __future__ import annotations

import pytest

from orchestrator.extension import extended
from orchestrator.status import StudyStatus
from orchestrator.submission.overrides import extension_fields
from orchestrator.views.ways_on import begins_more, say_still_ends, still_ends, used_up, ways_on
from workers.protocol.spec import StudySpec
from workers.protocol.states import StudyState, Wish

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


#: a study that something ended before all its trials were there
SHORT = {"trials": {"complete": 12}}
STOPPED = {**SHORT, "limit": "stop.equal_failures"}
ALL_FAILED = {"trials": {"failed": 22}, "limit": "stop.equal_failures"}

#: how a study ended -> what is advised, and the option of it
ENDS = {
    "all its trials": ({}, "trialfleet extend s --trials 40"),
    "a grid": ({"is_exhausted": True}, "widen its space"),
    "a target": ({**SHORT, "limit": "stop.target"}, "trialfleet extend s --set stop.target=VALUE"),
    "a target, by its last trial": (
        {"limit": "stop.target"},
        "trialfleet extend s --trials 40 --set stop.target=VALUE",
    ),
    "patience": (
        {**SHORT, "limit": "stop.patience"},
        "trialfleet extend s --set stop.patience=N",
    ),
    "patience, by its last trial": (
        {"limit": "stop.patience"},
        "trialfleet extend s --trials 40 --set stop.patience=N",
    ),
    "failures": (STOPPED, "mend what fails, then `trialfleet resume s`"),
    "failures of all": (ALL_FAILED, "mend what fails, then `trialfleet retry s`"),
    "failures of all, stopped": (
        {**ALL_FAILED, "wish": Wish.STOP},
        "mend what fails, then `trialfleet resume s` and `trialfleet retry s`",
    ),
    "time": (
        {**SHORT, "limit": "timeout", **used("wall_seconds", 3601.0, 3600.0)},
        "trialfleet extend s --set timeout=7202s",
    ),
    "slot-hours": (
        {**SHORT, "limit": "budget.slot_hours", **used("slot_hours", 4.0, 4.0)},
        "trialfleet extend s --set budget.slot_hours=8",
    ),
    "GPU-hours, by its last trial": (
        {"limit": "budget.gpu_hours", **used("gpu_hours", 2.5, 2.0)},
        "trialfleet extend s --trials 40 --set budget.gpu_hours=5",
    ),
}


@pytest.mark.parametrize("end", ENDS)
def test_each_end_has_a_way_on(end):
    fields, advice = ENDS[end]
    assert advice in ways_on(status(**fields), "trialfleet extend s")


def test_of_a_grid_that_reached_its_target_both_are_told():
    told = ways_on(status(limit="stop.target", is_exhausted=True), "trialfleet extend s")
    assert "extend s --set stop.target=VALUE" in told
    assert "widen its space, too" in told


def test_what_failed_to_its_last_trial_is_retried_and_then_run():
    told = ways_on(status(**ALL_FAILED), "trialfleet run STUDY")
    assert told == "mend what fails, then `trialfleet retry s` and `trialfleet run STUDY`"
    told = ways_on(status(**STOPPED), "trialfleet run STUDY")
    assert told == "mend what fails, then `trialfleet run STUDY`"


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
    changes, _ = extension_fields(SPEC, None, [text])
    if "--trials 40" in advice:
        changes["trials"] = 40
    after = extended(SPEC, changes)
    assert not still_ends(found, SPEC, after)
    assert begins_more(found, SPEC, after, [])
    assert used_up(found, after) is None
    is_budget = not fields["limit"].startswith("stop.")
    assert used_up(found, SPEC) == (fields["limit"] if is_budget else None)


@pytest.mark.parametrize(
    ("less", "fields", "advised"),
    [
        ({"timeout": 60.0}, used("wall_seconds", 90.0, 3600.0), "timeout=7200s"),
        ({"timeout": 60.0}, {"wall_seconds": 90.0}, "timeout=180s"),
        ({"budget": {"slot_hours": 1.0}}, used("slot_hours", 1.5, 4.0), "budget.slot_hours=8"),
        ({"budget": {"slot_hours": 1.0}}, {"busy_seconds": 5400.0}, "budget.slot_hours=3"),
    ],
)
def test_a_budget_below_what_is_used_is_named_with_what_would_do(less, fields, advised):
    found = status(state=StudyState.RUNNING, **SHORT, **fields)
    after = StudySpec(name="s", trials=20, **less)
    told = say_still_ends(found, StudySpec(name="s", trials=20), after, "trialfleet extend s")
    setting = advised.partition("=")[0]
    assert (
        told == f"since its {setting} is used up: `trialfleet extend s --set {advised}` raises that"
    )
