"""How much of each of its budgets a study has used, from what is known of its trials: pure.

Invariant: an orchestrator and whoever reads the storage alone count alike.
"""

from __future__ import annotations

from typing import Final

from workers.protocol.spec import StudySpec

_HOUR: Final = 3600.0


def uses(
    spec: StudySpec,
    num_trials: int,
    *,
    wall_seconds: float,
    slot_seconds: float,
    gpu_seconds: float,
) -> dict[str, tuple[float, float]]:
    """Of each budget that a study has: how much is used, and how much there is.

    Args:
        spec: The study.
        num_trials: All that there are.
        wall_seconds: How long it has been driven.
        slot_seconds: How long its trials have held slots, over all their attempts.
        gpu_seconds: Likewise, slots with a GPU.
    """
    budgets = {
        "trials": (num_trials, spec.trials),
        "wall_seconds": (wall_seconds, spec.timeout),
        "slot_hours": (slot_seconds / _HOUR, spec.budget.slot_hours),
        "gpu_hours": (gpu_seconds / _HOUR, spec.budget.gpu_hours),
    }
    return {
        name: (round(used, 6), float(allowed))
        for name, (used, allowed) in budgets.items()
        if allowed is not None
    }
