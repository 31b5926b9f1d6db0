"""Warm start: a sampler that sees the complete trials of another study before those of its own.

Invariant: the sampler alone sees them: what it writes, it writes to its own study's trials.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from orchestrator.driving.seeing_sampler import SeeingSampler, States
from orchestrator.submission.former_fit import those_in_space
from workers.logs import get_logger
from workers.protocol.spec import StudySpec

log = get_logger(__name__)


def with_former(
    sampler: BaseSampler, trials: Sequence[FrozenTrial], spec: StudySpec
) -> BaseSampler:
    """A sampler that sees those former trials that lie in the study's space."""
    found = those_in_space(trials, spec)
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


class WarmSampler(SeeingSampler):
    """Another sampler, which sees former trials before those of its study.

    Args:
        sampler: What draws.
        former: Numbered from 0; the study's own are numbered after them, for the sampler alone.
    """

    def __init__(self, sampler: BaseSampler, former: Sequence[FrozenTrial]) -> None:
        super().__init__(sampler)
        self._former = list(former)
        #: number -> an own trial that has ended, and as it is shown: nothing of it changes any more
        self._ended: dict[int, tuple[FrozenTrial, FrozenTrial]] = {}

    def _shown(
        self, read: Callable[[States], list[FrozenTrial]], states: States
    ) -> list[FrozenTrial]:
        former = self._former if states is None or TrialState.COMPLETE in states else []
        return [*former, *(self._own(trial) for trial in read(states))]

    def _own(self, trial: FrozenTrial) -> FrozenTrial:
        ended, shown = self._ended.get(trial.number, (None, None))
        if shown is None or ended is not trial:
            shown = _renumbered(trial, len(self._former))
            if trial.state.is_finished():
                self._ended[trial.number] = trial, shown
        return shown


def _renumbered(trial: FrozenTrial, offset: int) -> FrozenTrial:
    moved = copy.copy(trial)
    moved.number = trial.number + offset
    return moved
