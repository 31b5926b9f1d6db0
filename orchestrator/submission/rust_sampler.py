"""`engine: rust`: the tree-structured Parzen estimator of rustuna, the Optuna team's in Rust.

rustuna's own adapter (`rustuna.converter.ToOptunaSampler`) reads and converts all trials of the
study for each suggestion, which takes longer than Optuna's sampler does. Here each trial is
converted once, when it has ended, into a storage of rustuna's in memory.

Invariant: the sampler sees what Optuna's sees of trials that have ended, in Optuna's order:
complete ones first, pruned ones behind them, those that violate a constraint last. It sees none
that run.
"""

from __future__ import annotations

from typing import Any, Final

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.search_space import IntersectionSearchSpace
from optuna.trial import FrozenTrial, TrialState

from workers.protocol.errors import InvalidInputError

#: By what a pruned trial is shown to violate a constraint: by less than any that does.
_PRUNED: Final = "constraints:pruned"
_LEAST: Final = 1e-9

_SEEN: Final = (TrialState.COMPLETE, TrialState.PRUNED)


def rust_tpe() -> type:
    """The class of rustuna that `RustSampler` takes.

    Raises:
        InvalidInputError: It is not installed.
    """
    try:
        import rustuna  # an extra
    except ImportError as error:
        raise InvalidInputError(
            "sampler.engine = 'rust' needs the package rustuna, which the orchestrator does not"
            " have; `pip install rustuna`, or `pip install 'trialfleet[rust]'`"
        ) from error
    found: type = rustuna.samplers.TPESampler
    return found


class RustSampler(BaseSampler):
    """A sampler of rustuna for a study of Optuna.

    Args:
        inner: Draws; a `rustuna.samplers.TPESampler`.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._space = IntersectionSearchSpace(include_pruned=True)
        self._known: _Mirror | None = None

    def infer_relative_search_space(
        self,
        study: optuna.Study,
        trial: FrozenTrial,  # noqa: ARG002 - as Optuna calls it
    ) -> dict[str, BaseDistribution]:
        """What all trials that have ended have in common, if it draws parameters together."""
        if not self._inner.support_joint_sampling:
            return {}
        found = self._space.calculate(study)
        return {name: each for name, each in found.items() if not each.single()}

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,  # noqa: ARG002 - as Optuna calls it
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """Draw parameters together."""
        from rustuna.converter import to_rustuna_distributions

        if not search_space:
            return {}
        known = self._mirror(study)
        drawn = self._inner.sample_joint(
            known.context(), known.storage, to_rustuna_distributions(search_space)
        )
        return {name: search_space[name].to_external_repr(value) for name, value in drawn.items()}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,  # noqa: ARG002 - as Optuna calls it
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one parameter by itself."""
        from rustuna.converter import to_rustuna_distribution

        known = self._mirror(study)
        drawn = self._inner.sample_independent(
            known.context(), known.storage, param_name, to_rustuna_distribution(param_distribution)
        )
        return param_distribution.to_external_repr(drawn)

    def _mirror(self, study: optuna.Study) -> _Mirror:
        if self._known is None:
            self._known = _Mirror(study)
        for trial in study.get_trials(deepcopy=False, states=_SEEN):
            self._known.take(trial)
        return self._known


class _Mirror:
    """The ended trials of one study, in a storage of rustuna's.

    Args:
        study: Of Optuna.
    """

    def __init__(self, study: optuna.Study) -> None:
        import rustuna
        from rustuna.converter import to_rustuna_directions

        self.storage = rustuna.storages.InMemoryStorage()
        self._directions = to_rustuna_directions(study.directions)
        self._id = self.storage.create_new_study(study.study_name, self._directions).id
        self._numbers: set[int] = set()

    def take(self, trial: FrozenTrial) -> None:
        """Take an ended trial in, if it is not known yet."""
        if trial.number in self._numbers:
            return
        from rustuna.converter import to_persisted_trial

        shown = trial if trial.state is TrialState.COMPLETE else self._completed(trial)
        self.storage.create_new_trial(self._id, to_persisted_trial(shown, self._id))
        self._numbers.add(trial.number)

    def context(self) -> Any:
        """Of the next trial."""
        import rustuna

        number = len(self._numbers)
        return rustuna.samplers.SamplerContext(
            study_id=self._id,
            trial_number=number,
            trial_id=number,
            directions=self._directions,
        )

    def _completed(self, trial: FrozenTrial) -> FrozenTrial:
        """A pruned trial as a complete one that ranks behind all that are, the last pruned first.

        The engine looks at complete ones alone. Source of the order: Optuna's TPESampler,
        `_split_trials`.
        """
        step = -1 if trial.last_step is None else max(0, trial.last_step)
        return optuna.trial.create_trial(
            values=[0.0] * len(self._directions),
            params=trial.params,
            distributions=trial.distributions,
            system_attrs={**trial.system_attrs, _PRUNED: _LEAST / (2 + step)},
        )
