from __future__ import annotations

import pytest

from orchestrator.driving.budgets import Snapshot, is_failing_alike, reached, spares_given
from workers.protocol.spec import StudySpec


def spec(**fields):
    return StudySpec(name="s", **fields)


@pytest.mark.parametrize(
    ("fields", "seen", "reason"),
    [
        ({}, {"wall_seconds": 1e9, "slot_seconds": 1e9, "gpu_seconds": 1e9}, None),
        ({"timeout": 60}, {"wall_seconds": 59.9}, None),
        ({"timeout": 60}, {"wall_seconds": 60.0}, "the study's time was up"),
        ({"budget": {"slot_hours": 2}}, {"slot_seconds": 7199.0, "gpu_seconds": 1e9}, None),
        (
            {"budget": {"slot_hours": 2}},
            {"slot_seconds": 7200.0},
            "the study's 2 slot-hours were used up",
        ),
        ({"budget": {"gpu_hours": 0.5}}, {"slot_seconds": 1e9}, None),
        (
            {"budget": {"gpu_hours": 0.5}},
            {"gpu_seconds": 1800.0},
            "the study's 0.5 GPU-hours were used up",
        ),
        ({"stop": {"target": 0.9}, "direction": "maximize"}, {}, None),
        ({"stop": {"target": 0.9}, "direction": "maximize"}, {"best": (3, 0.89)}, None),
        (
            {"stop": {"target": 0.9}, "direction": "maximize"},
            {"best": (3, 0.95)},
            "trial 3 reached the study's target (0.95; wanted 0.9)",
        ),
        ({"stop": {"target": 0.9}}, {"best": (3, 0.95)}, None),
        ({"stop": {"target": 0.9}}, {"best": (3, 0.9)}, "trial 3 reached the study's target"),
        ({"stop": {"patience": 5}}, {"num_since_better": 4}, None),
        (
            {"stop": {"patience": 5}},
            {"num_since_better": 5},
            "no trial was better in the last 5",
        ),
        ({}, {"num_alike": 9}, None),
        ({}, {"num_alike": 10}, "10 trials in a row failed with the same traceback"),
        ({"stop": {"equal_failures": 0}}, {"num_alike": 10_000}, None),
        ({"stop": {"equal_failures": 1}}, {"num_alike": 1}, "trial failed with the same traceback"),
    ],
)
def test_what_ends_a_study(fields, seen, reason):
    found = reached(spec(**fields), Snapshot(**seen))
    assert (found is None) == (reason is None)
    assert found is None or reason in found.reason


@pytest.mark.parametrize(
    ("seen", "is_spared"),
    [
        ({"best": (3, 0.1)}, True),
        ({"num_since_better": 5}, True),
        ({"best": (3, 0.1), "wall_seconds": 60.0}, False),
        ({"slot_seconds": 7200.0}, False),
        ({"gpu_seconds": 7200.0}, False),
        ({"best": (3, 0.1), "num_alike": 10}, False),
    ],
)
def test_what_people_give_runs_past_what_was_found_but_not_without_budget(seen, is_spared):
    limits = {"timeout": 60, "budget": {"slot_hours": 2, "gpu_hours": 2}}
    limited = spec(stop={"target": 0.2, "patience": 5}, **limits)
    assert reached(limited, Snapshot(**seen)) is not None
    assert spares_given(limited, Snapshot(**seen)) == is_spared


def test_failures_end_a_study_before_all_else_since_somebody_must_mend_them():
    seen = Snapshot(wall_seconds=9.0, num_alike=10)
    assert "in a row failed" in reached(spec(timeout=1), seen).reason
    assert is_failing_alike(spec(), seen)
    assert not is_failing_alike(spec(stop={"equal_failures": 0}), seen)
