"""Which of many trials' curves are drawn, and of how many points: pure.

Invariant: what is sent has a bound, however many trials report however often.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from optuna.trial import FrozenTrial

from orchestrator.dashboard.trial_columns import letter_of, number_for_chart

#: How many curves are drawn: of the best, the latest and those that run.
NUM_BEST: Final = 20
NUM_LATEST: Final = 30
NUM_RUNNING: Final = 64

#: Points of one curve.
MAX_POINTS: Final = 60


def curves(
    trials: Sequence[FrozenTrial], best: Iterable[int], running: Iterable[int]
) -> list[dict[str, Any]]:
    """The curves of the best trials, of the latest that reported, and of those that run.

    Args:
        trials: All of the study, by number.
        best: The numbers of the best trials, the best first.
        running: Of those that run.
    """
    latest = [each.number for each in reversed(trials) if each.intermediate_values][:NUM_LATEST]
    chosen = {*list(best)[:NUM_BEST], *latest, *list(running)[:NUM_RUNNING]}
    numbers = (number for number in sorted(chosen) if 0 <= number < len(trials))
    return [curve for number in numbers if (curve := curve_of(trials[number]))["steps"]]


def curve_of(trial: FrozenTrial, max_points: int = MAX_POINTS) -> dict[str, Any]:
    """One trial's reports, thinned out."""
    steps = thinned(sorted(trial.intermediate_values), max_points)
    return {
        "trial": trial.number,
        "state": letter_of(trial),
        "steps": steps,
        "values": [number_for_chart(trial.intermediate_values[step]) for step in steps],
    }


def thinned(steps: Sequence[int], max_points: int) -> list[int]:
    """So many steps at most, evenly chosen, with the first and the last one."""
    if len(steps) <= max_points:
        return list(steps)
    distance = (len(steps) - 1) / (max_points - 1)
    return [steps[round(at * distance)] for at in range(max_points)]
