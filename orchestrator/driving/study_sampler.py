"""A study's sampler: which other trials it sees, and that it may draw in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from optuna.samplers import BaseSampler, GridSampler
from optuna.storages import BaseStorage

from orchestrator.driving.aside_sampler import PATIENCE_SECONDS, AsideSampler, may_draw_aside
from orchestrator.driving.seeing_sampler import PausedAsPruned
from orchestrator.driving.warm_sampler import with_former
from orchestrator.storage.former_trials import former_trials
from orchestrator.storage.succession import former_of
from orchestrator.storage.tally import Tally
from orchestrator.submission.algorithms import make_sampler
from orchestrator.submission.further_grid import FurtherGrid, OwnGrid
from workers.protocol.spec import StudySpec
from workers.settings import Settings


class StudySampler:
    """Makes the sampler of one study, and ends what runs beside this process for it.

    Args:
        spec: The study.
        storage: Where its trials are, and those of the study that it starts from.
        settings: Say which modules samplers may be of.
        tally: Its trials, once they were summed up.
    """

    def __init__(
        self,
        spec: StudySpec,
        storage: BaseStorage,
        settings: Settings,
        tally: Callable[[], Tally],
    ) -> None:
        self._spec = spec
        self._storage = storage
        self._settings = settings
        self._tally = tally
        self._aside: AsideSampler | None = None
        self.has_larger_grid = False
        """Whether it is a grid that goes on in a wider space."""

    def make(self, num_existing: int) -> BaseSampler:
        """The sampler of a study that has so many trials."""
        sampler = self._beside(self._grid(self._bare(num_existing)))
        former = former_trials(self._spec, self._storage, self._settings)
        warm = with_former(sampler, former, self._spec)
        if not self._spec.pruner.promote:
            return warm
        return PausedAsPruned(warm, self._paused)

    def close(self) -> None:
        """End the process that it draws in."""
        if self._aside is not None:
            self._aside.close()

    def _bare(self, num_existing: int) -> BaseSampler:
        return make_sampler(self._spec, num_existing=num_existing, allowed=self._settings.samplers)

    def _again(self) -> BaseSampler:
        """The study's sampler as after a restart."""
        return self._bare(self._tally().num_trials)

    def _paused(self) -> Mapping[int, float]:
        return self._tally().paused

    def _grid(self, sampler: BaseSampler) -> BaseSampler:
        """One that asks in the order of its points, and for those that a larger grid has left."""
        if not isinstance(sampler, GridSampler):
            return sampler
        self.has_larger_grid = bool(former_of(self._storage, self._spec.name))
        return (FurtherGrid if self.has_larger_grid else OwnGrid).of(sampler)

    def _beside(self, sampler: BaseSampler) -> BaseSampler:
        """One that draws in a process of its own, once it is slow, where that can be."""
        if not may_draw_aside(sampler):
            return sampler
        self._aside = AsideSampler(
            sampler,
            self._again,
            self._spec.name,
            patience_seconds=PATIENCE_SECONDS * self._settings.time_scale,
        )
        return self._aside
