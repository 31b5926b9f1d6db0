"""A sampler that is shown other trials than its study has.

Invariant: the sampler alone sees them: what it writes, it writes to its own study's trials.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Sequence
from typing import Any, TypeAlias, cast

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

States: TypeAlias = Container[TrialState] | None


class SeeingSampler(BaseSampler):
    """Another sampler, which sees what a subclass shows it.

    Args:
        sampler: What draws.
    """

    def __init__(self, sampler: BaseSampler) -> None:
        self.inner = sampler

    def _shown(
        self, read: Callable[[States], list[FrozenTrial]], states: States
    ) -> list[FrozenTrial]:
        """The trials that the sampler sees.

        Args:
            read: Reads the study's own in some states; they are not to be changed.
            states: Those that the sampler asks for.
        """
        return read(states)

    def _own(self, trial: FrozenTrial) -> FrozenTrial:
        """The trial that is sampled, as the sampler sees it."""
        return trial

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Of the trials that it sees."""
        return self.inner.infer_relative_search_space(self._seen(study), self._own(trial))

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """What the sampler draws together."""
        return self.inner.sample_relative(self._seen(study), self._own(trial), search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """What the sampler draws for one parameter."""
        return self.inner.sample_independent(
            self._seen(study), self._own(trial), param_name, param_distribution
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
        return cast("optuna.Study", _SeenStudy(study, self._shown))


class PausedAsPruned(SeeingSampler):
    """A sampler that sees trials that are paused at a rung as pruned there: by what they reported.

    As RUNNING ones they would repel it (TPE's `constant_liar`), and tell it nothing.

    Args:
        sampler: What draws.
        paused: The numbers of those that are paused now.
    """

    def __init__(self, sampler: BaseSampler, paused: Callable[[], Container[int]]) -> None:
        super().__init__(sampler)
        self._paused = paused

    def _shown(
        self, read: Callable[[States], list[FrozenTrial]], states: States
    ) -> list[FrozenTrial]:
        paused = self._paused()
        wanted = tuple(state for state in TrialState if states is None or state in states)
        if not paused or not {TrialState.RUNNING, TrialState.PRUNED} & set(wanted):
            return read(states)
        found = read((*wanted, TrialState.RUNNING))
        shown = [_pruned(each) if each.number in paused else each for each in found]
        return [trial for trial in shown if trial.state in wanted]


class _SeenStudy:
    """A study as its sampler sees it: all as it is, but for the trials."""

    def __init__(
        self,
        study: optuna.Study,
        shown: Callable[[Callable[[States], list[FrozenTrial]], States], list[FrozenTrial]],
    ) -> None:
        self._study = study
        self._shown = shown

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.get_trials()

    def get_trials(
        self,
        deepcopy: bool = True,  # noqa: FBT001, FBT002 - as Optuna's
        states: States = None,
    ) -> list[FrozenTrial]:
        return self._get_trials(deepcopy, states)

    def _get_trials(
        self,
        deepcopy: bool = True,  # noqa: FBT001, FBT002 - as Optuna's
        states: States = None,
        use_cache: bool = False,  # noqa: FBT001, FBT002 - as Optuna's
    ) -> list[FrozenTrial]:
        def read(wanted: States) -> list[FrozenTrial]:
            return self._study._get_trials(deepcopy=False, states=wanted, use_cache=use_cache)

        found = self._shown(read, states)
        return copy.deepcopy(found) if deepcopy else found


def _pruned(trial: FrozenTrial) -> FrozenTrial:
    seen = copy.copy(trial)
    seen.state = TrialState.PRUNED
    return seen
