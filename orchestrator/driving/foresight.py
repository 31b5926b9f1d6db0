"""What an objective is going to ask for, drawn before it asks: so no question is to be answered.

An objective without a `space` is known by its ended trials. What the sampler draws together is
drawn when a trial is asked for; so is what every ended trial asked for, from the same distribution,
if the sampler draws each parameter by itself. The rest is new or conditional, and drawn when it is
asked for.

A study with a seed is to draw the same again: there, what is drawn by itself is drawn when it is
asked for, so that the generator is used in that order.

Invariant: a value stands only for what Optuna would take it for, and is none of the trial's before
the objective has asked for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import optuna
from optuna import pruners
from optuna.distributions import BaseDistribution, _get_single_value, distribution_to_json
from optuna.samplers import BaseSampler, BruteForceSampler
from optuna.trial import FrozenTrial, TrialState

from orchestrator.driving.seeing_sampler import SeeingSampler
from workers.protocol.messages import Drawn

#: The trials that say what an objective asks for.
_TELLING: Final = frozenset({TrialState.COMPLETE, TrialState.PRUNED})

#: Where Optuna's samplers have others that draw for them.
_INNER: Final = ("_base_sampler", "_independent_sampler")


class Foresight:
    """What trials of one study are going to ask for.

    Args:
        study: Open for writing.
        is_seeded: Whether it is to draw the same again.
        trials: Those that there are.
    """

    def __init__(
        self, study: optuna.Study, *, is_seeded: bool, trials: Iterable[FrozenTrial] = ()
    ) -> None:
        self._study = study
        self._may_draw_alone = not is_seeded and draws_each_alone(study.sampler)
        #: what every trial asked for; None before any has ended
        self._common: dict[str, BaseDistribution] | None = None
        #: what was drawn for open trials, by number
        self._drawn: dict[int, Mapping[str, Drawn]] = {}
        for trial in trials:
            self.note(trial)

    def note(self, trial: FrozenTrial) -> None:
        """Learn from a trial that has ended."""
        self._drawn.pop(trial.number, None)
        if trial.state in _TELLING:
            found = trial.distributions
            known = found if self._common is None else self._common
            self._common = {name: each for name, each in known.items() if found.get(name) == each}

    def draw(self, trial: optuna.Trial) -> Mapping[str, Drawn]:
        """What a trial that was just asked for may ask for."""
        drawn = self._draw(trial)
        if drawn:
            self._drawn[trial.number] = drawn
        return drawn

    def drawn(self, number: int) -> Mapping[str, Drawn]:
        """What was drawn for a trial, as far as this orchestrator did it."""
        return self._drawn.get(number, {})

    def _draw(self, trial: optuna.Trial) -> Mapping[str, Drawn]:
        # not `params`, which is copied each time
        has = {*trial._cached_frozen_trial.params, *trial._fixed_params}
        left = {name: each for name, each in (self._common or {}).items() if name not in has}
        if not left:
            return {}
        if all(each.single() for each in left.values()):
            return dict(self._draw_alone(trial, left))  # Optuna, too, would draw nothing together
        try:
            joint = {name: each for name, each in self._draw_together(trial) if name not in has}
            left = {name: each for name, each in left.items() if name not in joint}
            return {**joint, **dict(self._draw_alone(trial, left))}
        except (ValueError, TypeError, ArithmeticError):
            return {}  # the objective is told so when it asks

    def _draw_together(self, trial: optuna.Trial) -> Iterator[tuple[str, Drawn]]:
        values = trial.relative_params
        for name, distribution in (trial.relative_search_space or {}).items():
            if name in values:
                yield name, _drawn(distribution, values[name], is_joint=True)

    def _draw_alone(
        self, trial: optuna.Trial, left: Mapping[str, BaseDistribution]
    ) -> Iterator[tuple[str, Drawn]]:
        frozen = trial._get_latest_trial()
        seen = pruners._filter_study(self._study, frozen)
        for name, distribution in left.items():
            if distribution.single():
                yield name, _drawn(distribution, _get_single_value(distribution))
            elif self._may_draw_alone:
                value = seen.sampler.sample_independent(seen, frozen, name, distribution)
                yield name, _drawn(distribution, value)


def draws_each_alone(sampler: BaseSampler) -> bool:
    """Whether a sampler draws a parameter whatever was drawn for the trial before it.

    Of those that are not Optuna's that is not known.
    """
    if isinstance(sampler, SeeingSampler):
        return draws_each_alone(sampler.inner)
    inner = [getattr(sampler, name) for name in _INNER if hasattr(sampler, name)]
    is_known = type(sampler).__module__.startswith("optuna.")
    is_walk = isinstance(sampler, BruteForceSampler)
    return is_known and not is_walk and all(draws_each_alone(each) for each in inner)


def take(trial: optuna.Trial, name: str, distribution: BaseDistribution, value: Any) -> None:
    """Have a trial hold a value that was drawn for it, as if it had just been suggested.

    Raises:
        ValueError: Trials of its study have the parameter from another kind of distribution.
    """
    frozen = trial._cached_frozen_trial
    if name not in frozen.params:
        internal = distribution.to_internal_repr(value)
        trial.storage.set_trial_param(trial._trial_id, name, internal, distribution)
        frozen.distributions[name] = distribution
        frozen.params[name] = value


def _drawn(distribution: BaseDistribution, value: Any, *, is_joint: bool = False) -> Drawn:
    """A value as it would come back from the storage.

    Raises:
        ValueError: The sampler drew what the distribution does not hold.
    """
    stored = distribution.to_external_repr(distribution.to_internal_repr(value))
    text = distribution_to_json(distribution)
    return Drawn(distribution=text, value=stored, is_joint=is_joint)
