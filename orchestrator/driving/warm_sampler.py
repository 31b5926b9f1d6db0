"""Warm start: a sampler that sees the complete trials of another study before those of its own.

Invariant: the sampler alone sees them: what it writes, it writes to its own study's trials.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence
from typing import Any, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from orchestrator.submission.space import distributions
from workers.logs import get_logger
from workers.protocol.spec import StudySpec

log = get_logger(__name__)


def with_former(
    sampler: BaseSampler, trials: Sequence[FrozenTrial], spec: StudySpec
) -> BaseSampler:
    """A sampler that sees those former trials that lie in the study's space."""
    space = distributions(spec)
    required = [name for name, dimension in spec.space.items() if not dimension.when]
    fitting = [_fitted(trial, space, required) for trial in trials]
    found = [trial for trial in fitting if trial is not None]
    if len(found) < len(trials):
        log.info(
            "former_trials_left_out",
            study=spec.name,
            count=len(trials) - len(found),
            reason="a parameter of the space is missing, or beyond its bounds or choices",
        )
    for number, trial in enumerate(found):
        trial.number = number
    return WarmSampler(sampler, found) if found else sampler


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


class WarmSampler(BaseSampler):
    """Another sampler, which sees former trials before those of its study.

    Args:
        sampler: What draws.
        former: Numbered from 0; the study's own are numbered after them, for the sampler alone.
    """

    def __init__(self, sampler: BaseSampler, former: Sequence[FrozenTrial]) -> None:
        self.inner = sampler
        self._former = list(former)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Of the former trials and the study's own."""
        return self.inner.infer_relative_search_space(self._seen(study), self._after(trial))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """What the sampler draws together."""
        return self.inner.sample_relative(self._seen(study), self._after(trial), search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """What the sampler draws for one parameter."""
        return self.inner.sample_independent(
            self._seen(study), self._after(trial), param_name, param_distribution
        )

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """As the sampler does; it writes to the study's own trial."""
        self.inner.before_trial(study, trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """As the sampler does; it writes to the study's own trial."""
        self.inner.after_trial(study, trial, state, values)

    def reseed_rng(self) -> None:
        """As the sampler does."""
        self.inner.reseed_rng()

    def _seen(self, study: optuna.Study) -> optuna.Study:
        return cast("optuna.Study", _SeenStudy(study, self._former))

    def _after(self, trial: FrozenTrial) -> FrozenTrial:
        return _renumbered(trial, len(self._former))


class _SeenStudy:
    """A study as its sampler sees it: all as it is, but for the trials."""

    def __init__(self, study: optuna.Study, former: Sequence[FrozenTrial]) -> None:
        self._study = study
        self._former = former

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.get_trials()

    def get_trials(
        self,
        deepcopy: bool = True,  # noqa: FBT001, FBT002 - as Optuna's
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        return self._get_trials(deepcopy, states)

    def _get_trials(
        self,
        deepcopy: bool = True,  # noqa: FBT001, FBT002 - as Optuna's
        states: Container[TrialState] | None = None,
        use_cache: bool = False,  # noqa: FBT001, FBT002 - as Optuna's
    ) -> list[FrozenTrial]:
        own = self._study._get_trials(deepcopy=False, states=states, use_cache=use_cache)
        former = self._former if states is None or TrialState.COMPLETE in states else []
        found = [*former, *(_renumbered(trial, len(self._former)) for trial in own)]
        return copy.deepcopy(found) if deepcopy else found


def _renumbered(trial: FrozenTrial, offset: int) -> FrozenTrial:
    moved = copy.copy(trial)
    moved.number = trial.number + offset
    return moved
