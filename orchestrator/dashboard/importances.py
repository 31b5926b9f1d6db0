"""How much each parameter of a study matters, as Optuna evaluates it, kept while little changes.

Invariant: a second look at the same trials costs nothing, and two looks at once evaluate once.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from typing import Any, Final

import optuna
from optuna.importance import get_param_importances
from optuna.trial import FrozenTrial, TrialState

from workers.protocol.plain import describe_error

#: By how much a study has to grow before it is evaluated again.
_GROWTH: Final = 1.05

#: With fewer complete trials there is nothing to tell.
_LEAST_TRIALS: Final = 4

#: What Optuna makes of trials of which nothing can be told: all of one value, or numbers that NumPy
#: does not hold.
_UNTOLD: Final = (ValueError, RuntimeError, TypeError, ArithmeticError)


class Importances:
    """Of one study."""

    def __init__(self) -> None:
        self._evaluating = threading.Lock()
        self._found: dict[str, Any] = {}
        self._num_complete = 0

    def of(self, study: optuna.Study | None, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
        """By metric, the parameters with their shares, the largest first; or why there is none.

        Args:
            study: None where the results are on another machine.
            trials: All of it.
        """
        complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
        if study is None or len(complete) < _LEAST_TRIALS:
            return {"problem": f"it takes {_LEAST_TRIALS} complete trials to tell", "metrics": []}
        with self._evaluating:
            if not self._num_complete <= len(complete) <= self._num_complete * _GROWTH:
                self._found = _evaluate(study, complete)
                self._num_complete = len(complete)
            return self._found


def _evaluate(study: optuna.Study, complete: Sequence[FrozenTrial]) -> dict[str, Any]:
    count = len(study.directions)
    try:
        metrics = [_of_metric(study, at, count) for at in range(count)]
    except _UNTOLD as error:
        return {"problem": describe_error(error, 300), "metrics": []}
    return {"problem": None, "metrics": metrics, "num_complete": len(complete)}


def _of_metric(study: optuna.Study, at: int, count: int) -> dict[str, float]:
    def value_at(trial: FrozenTrial) -> float:
        return float(trial.values[at])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = get_param_importances(study, target=value_at if count > 1 else None)
    return {name: round(float(share), 4) for name, share in found.items()}
