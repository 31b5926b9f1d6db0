"""An objective that does nothing: what a trial costs, and no more."""

from __future__ import annotations

from typing import Final

from workers.trials.handle import FleetTrial

#: The five parameters of its space.
PARAMETERS: Final = ("a", "b", "c", "d", "e")


def objective(trial: FleetTrial) -> float:
    """The sum of its parameters."""
    return sum(trial.suggest_float(name, 0.0, 1.0) for name in PARAMETERS)
