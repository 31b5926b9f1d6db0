"""Which trials of another study lie in a study's space: those its sampler can learn from.

Invariant: no value of a trial changes, and the trials that were given stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from orchestrator.submission.space import distributions
from workers.protocol.spec import StudySpec


def those_in_space(trials: Sequence[FrozenTrial], spec: StudySpec) -> list[FrozenTrial]:
    """The trials that could have been suggested from a study's space, as if they had been."""
    space = distributions(spec)
    required = [name for name, dimension in spec.space.items() if not dimension.when]
    fitting = [_fitted(trial, space, required) for trial in trials]
    return [trial for trial in fitting if trial is not None]


def told_of_former(trials: Sequence[FrozenTrial], spec: StudySpec) -> list[str]:
    """What people should know of the trials that a study starts from; nothing if all are of use."""
    if spec.warm_start is None:
        return []
    source, count = f"from = {spec.warm_start.study!r}", len(trials)
    if not trials:
        return [f"{source}: it has no complete trial, and the sampler learns nothing from it"]
    found = len(those_in_space(trials, spec))
    if found == count:
        return []
    lacking = [
        name
        for name, dimension in spec.space.items()
        if not dimension.when and all(name not in trial.params for trial in trials)
    ]
    why = "parameters are missing in the others, or beyond this study's bounds or choices"
    if lacking:
        why = f"they have no {', '.join(lacking)}"
    told = (
        f"of its {count} complete trials {found} can be learnt from, which lie in this study's"
        f" space ({why})"
    )
    if not found:
        told = (
            f"none of its {count} complete trials lies in this study's space ({why}), and the"
            " sampler learns nothing from it"
        )
    return [f"{source}: {told}"]


def _fitted(
    trial: FrozenTrial, space: dict[str, BaseDistribution], required: Sequence[str]
) -> FrozenTrial | None:
    """A trial as if it had been suggested from a space; None if it could not have been."""
    if not space:
        return copy.copy(trial)
    params = {name: value for name, value in trial.params.items() if name in space}
    if any(name not in params for name in required):
        return None
    if not all(_contains(space[name], value) for name, value in params.items()):
        return None
    fitted = copy.copy(trial)
    fitted.params = params
    fitted.distributions = {name: space[name] for name in params}
    return fitted


def _contains(distribution: BaseDistribution, value: Any) -> bool:
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except (ValueError, TypeError):
        return False
