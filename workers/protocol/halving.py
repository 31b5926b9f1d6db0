"""The rungs of successive halving: at which steps a trial is paused, to be promoted or not.

Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning" (2020).

Invariant: orchestrator and workers read the same rungs from a study, whichever was started first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from workers.protocol.study_options import PrunerSpec

#: Optuna's own, for the options that a study leaves out.
_DEFAULTS: Final = {
    "min_resource": 1,
    "reduction_factor": 4,
    "min_early_stopping_rate": 0,
    "bootstrap_count": 0,
}

#: The least that each option may be.
_LEAST: Final = {
    "min_resource": 1,
    "max_resource": 2,
    "reduction_factor": 2,
    "min_early_stopping_rate": 0,
    "bootstrap_count": 0,
}

#: A step beyond these is none that a report can have.
_MAX_RESOURCE: Final = 2**53


@dataclass(frozen=True, slots=True)
class RungSchedule:
    """Where the rungs of a study lie, in steps, and what it takes to leave one."""

    resources: tuple[int, ...]
    """The step at which each rung is reached, from the lowest rung."""
    reduction_factor: int
    """Of so many trials of a rung, one is promoted."""
    bootstrap_count: int = 0
    """So many trials have reached a rung before the first is promoted from it."""

    @classmethod
    def of(cls, pruner: PrunerSpec) -> RungSchedule | None:
        """The rungs of a study; None where its pruner promotes nothing.

        Raises:
            ValueError: An option is missing, unknown or out of range; it is named first.
        """
        if not pruner.promote:
            return None
        options = {**_DEFAULTS, **(pruner.model_extra or {})}
        for name, value in options.items():
            _check(name, value)
        if "max_resource" not in options:
            raise ValueError(
                "max_resource is missing: give the step at which a trial has had all that it is to"
                " get, such as its last epoch"
            )
        factor, top = options["reduction_factor"], options["max_resource"]
        first = options["min_resource"] * factor ** min(options["min_early_stopping_rate"], 64)
        if first >= top:
            raise ValueError(
                f"max_resource = {top}: it has to lie beyond the first rung, which is at step"
                f" {first}; raise it, or lower min_resource or min_early_stopping_rate"
            )
        resources = []
        while first < top:
            resources.append(first)
            first *= factor
        return cls(tuple(resources), factor, options["bootstrap_count"])

    def resource(self, rung: int) -> int | None:
        """The step at which a rung is reached; None beyond the last: the trial goes to its end."""
        return self.resources[rung] if rung < len(self.resources) else None

    def num_promoted(self, num_reached: int) -> int:
        """How many trials of a rung are to be promoted, where so many have reached it."""
        if num_reached < self.bootstrap_count:
            return 0
        return num_reached // self.reduction_factor


def _check(name: str, value: Any) -> None:
    if name not in _LEAST:
        raise ValueError(
            f"{name} = {value!r}: successive halving that promotes has no such option (it has"
            f" {', '.join(_LEAST)})"
        )
    if type(value) is not int or not _LEAST[name] <= value <= _MAX_RESOURCE:
        raise ValueError(f"{name} = {value!r}: give a whole number, {_LEAST[name]} at least")
