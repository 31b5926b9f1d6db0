"""Which trials are the best, by Optuna's rules: feasible, and with several directions a front."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable, Sequence
from typing import Final

import optuna
from optuna.study._multi_objective import _get_pareto_front_trials_by_trials
from optuna.trial import FrozenTrial

from workers.protocol.spec import Direction

_DIRECTIONS: Final = {
    "minimize": optuna.study.StudyDirection.MINIMIZE,
    "maximize": optuna.study.StudyDirection.MAXIMIZE,
}


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial violates no constraint: one above 0 is violated."""
    return all(value <= 0.0 for value in trial.constraints.values())


def why_no_best(trials: Sequence[FrozenTrial]) -> str:
    """What a study has in the place of a best trial: none that is complete, or feasible."""
    is_any_complete = any(each.state is optuna.trial.TrialState.COMPLETE for each in trials)
    return "no complete trial" + (" that violates no constraint" if is_any_complete else "")


def least_violating_first(
    trials: Sequence[FrozenTrial], directions: Sequence[Direction]
) -> list[FrozenTrial]:
    """The complete trials that violate a constraint, those first that violate them least.

    By the sum of what is above 0, as Optuna's TPE sampler orders them; then by their first value.
    """
    found = [
        trial
        for trial in trials
        if trial.state is optuna.trial.TrialState.COMPLETE
        and trial.values
        and not is_feasible(trial)
    ]
    sign = -1.0 if directions[0] == "maximize" else 1.0
    return sorted(
        found, key=lambda trial: (_violation(trial), sign * trial.values[0], trial.number)
    )


def _violation(trial: FrozenTrial) -> float:
    # one that is not a number is as bad as can be, and has its place in the order
    above = (math.inf if math.isnan(value) else value for value in trial.constraints.values())
    return sum(max(0.0, value) for value in above)


def best_first(trials: Sequence[FrozenTrial], directions: Sequence[Direction]) -> list[FrozenTrial]:
    """The complete trials that violate no constraint, the best first.

    Of a study with several directions those alone than which no other is better in one value and
    worse in none (`optuna.Study.best_trials`), in the order of the first.
    """
    found = [
        trial
        for trial in trials
        if trial.state is optuna.trial.TrialState.COMPLETE and trial.values and is_feasible(trial)
    ]
    if len(directions) > 1:
        wanted = [_DIRECTIONS[direction] for direction in directions]
        found = _get_pareto_front_trials_by_trials(found, wanted)
    return sorted(found, key=_by_value(directions[0]))


def note_better(
    best: list[FrozenTrial], trial: FrozenTrial, direction: Direction, most: int
) -> None:
    """Put a complete trial that violates no constraint in its place among the best, if it has one.

    Args:
        best: The best first; changed in place.
        trial: The one to be put there.
        direction: Of the study's only value.
        most: How many are kept.
    """
    key = _by_value(direction)
    if len(best) < most or key(trial) < key(best[-1]):
        insort(best, trial, key=key)
        del best[most:]


def _by_value(direction: Direction) -> Callable[[FrozenTrial], tuple[float, int]]:
    sign = -1.0 if direction == "maximize" else 1.0
    return lambda trial: (sign * trial.values[0], trial.number)
