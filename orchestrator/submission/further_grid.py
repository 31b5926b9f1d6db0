"""A grid whose trials need not have its points, and one that has become larger.

Optuna gives a trial the point of its own number, which in a larger grid may be one that was tried,
and takes it for granted that each trial has a point: one with given parameters has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

import optuna
from optuna.samplers import GridSampler
from optuna.trial import FrozenTrial, TrialState

from orchestrator.storage.attributes import WHOLE_ATTR


class OwnGrid(GridSampler):
    """Is at its end when each point has been tried, whatever other trials there are."""

    @classmethod
    def of(cls, grid: GridSampler) -> Self:
        """The same grid, in the same order."""
        found = cls(grid._search_space)
        vars(found).update(vars(grid))
        return found

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,  # noqa: ARG002 - the base class calls it so
        values: Sequence[float] | None,  # noqa: ARG002 - likewise
    ) -> None:
        """Stop the study with its last point."""
        own = study._storage.get_trial_system_attrs(trial._trial_id).get("grid_id")
        if not set(self._get_unvisited_grid_ids(study)) - {own}:
            study.stop()


class FurtherGrid(OwnGrid):
    """Gives each trial the first point that none has, in the grid's own order."""

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Note with the trial which point it is to have, unless somebody gave it one."""
        if trial.system_attrs.keys() & {"grid_id", "fixed_params", WHOLE_ATTR}:
            return
        free = self._get_unvisited_grid_ids(study) or range(self._n_min_trials)
        self._note(study, trial, min(free))

    def _note(self, study: optuna.Study, trial: FrozenTrial, point: int) -> None:
        storage = study._storage
        storage.set_trial_system_attr(trial._trial_id, "search_space", self._search_space)
        storage.set_trial_system_attr(trial._trial_id, "grid_id", point)


def num_beside(trials: Iterable[FrozenTrial]) -> int:
    """How many trials of a larger grid have none of its points, though nobody gave them others."""
    pointed = {"grid_id", "fixed_params"}
    return sum(not trial.system_attrs.keys() & pointed for trial in trials)


def attrs_in(
    grid: GridSampler,
    params: Mapping[str, Any],
    may_lack: Callable[[str], bool],
    taken: set[int],
) -> dict[str, Any]:
    """What a grid notes with a trial that has one of its points; nothing if it has none.

    Args:
        grid: The sampler.
        params: The trial's.
        may_lack: Whether a trial at a point may be without a parameter.
        taken: The points of other trials; the one that is found is added.
    """
    for index, point in enumerate(grid._all_grids):
        named = zip(grid._param_names, point, strict=True)
        if index not in taken and all(
            _same(each, params[name]) if name in params else may_lack(name) for name, each in named
        ):
            taken.add(index)
            return {"search_space": grid._search_space, "grid_id": index}
    return {}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
