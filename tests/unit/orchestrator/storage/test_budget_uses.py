from __future__ import annotations

from orchestrator.storage.budget_uses import uses
from workers.protocol.spec import StudySpec


def test_the_budgets_that_a_study_has_are_told_with_what_is_used():
    used = {"wall_seconds": 90.0, "slot_seconds": 1800.0, "gpu_seconds": 900.0}
    assert uses(StudySpec(name="s", trials=7), 3, **used) == {"trials": (3, 7)}
    full = StudySpec(name="s", trials=7, timeout=60, budget={"slot_hours": 2, "gpu_hours": 1})
    assert uses(full, 3, **used) == {
        "trials": (3, 7),
        "wall_seconds": (90.0, 60.0),
        "slot_hours": (0.5, 2.0),
        "gpu_hours": (0.25, 1.0),
    }
