"""Which of many trials' curves are drawn, and of how many points: pure.

Invariant: what is sent has a bound, however many trials report however often.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from optuna.trial import FrozenTrial

from orchestrator.dashboard.trial_columns import letter_of, number_for_chart

#: How many curves are drawn: of the best, the latest, those that run, and others from all along.
NUM_BEST: Final = 20
NUM_LATEST: Final = 30
NUM_RUNNING: Final = 64
NUM_OTHERS: Final = 20

#: Points of one curve.
MAX_POINTS: Final = 60


def curves(
    trials: Sequence[FrozenTrial], best: Iterable[int], running: Iterable[int]
) -> list[dict[str, Any]]:
    """The curves of the best trials, of the latest that reported, of those that run, and of others.

    Args:
        trials: All of the study, by number.
        best: The numbers of the best trials, the best first.
        running: Of those that run.
    """
    reported = [each.number for each in trials if each.intermediate_values]
    latest, others = reported[-NUM_LATEST:], some_of(reported, NUM_OTHERS)
    chosen = {*list(best)[:NUM_BEST], *latest, *list(running)[:NUM_RUNNING], *others}
    numbers = (number for number in sorted(chosen) if 0 <= number < len(trials))
    return [curve for number in numbers if (curve := curve_of(trials[number]))["steps"]]


def some_of(numbers: Sequence[int], most: int) -> Sequence[int]:
    """So many at most, at even distances, which stay the same until there are twice as many."""
    distance = 1
    while len(numbers) > most * distance:
        distance *= 2
    return numbers[::distance]


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
