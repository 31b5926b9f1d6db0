"""A grid that has become larger: points that trials have had are not gone through again.

Optuna gives a trial the point of its own number, which in a larger grid may be one that was tried.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import optuna
from optuna.samplers import GridSampler
from optuna.trial import FrozenTrial


class FurtherGrid(GridSampler):
    """Gives each trial the first point that none has, in the grid's own order."""

    @classmethod
    def of(cls, grid: GridSampler) -> Self:
        """The same grid, in the same order."""
        found = cls(grid._search_space)
        vars(found).update(vars(grid))
        return found

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Note with the trial which point it is to have, unless somebody gave it one."""
        if "grid_id" in trial.system_attrs or "fixed_params" in trial.system_attrs:
            return
        free = self._get_unvisited_grid_ids(study) or range(self._n_min_trials)
        self._note(study, trial, min(free))

    def _note(self, study: optuna.Study, trial: FrozenTrial, point: int) -> None:
        storage = study._storage
        storage.set_trial_system_attr(trial._trial_id, "search_space", self._search_space)
        storage.set_trial_system_attr(trial._trial_id, "grid_id", point)


def attrs_in(grid: GridSampler, params: Mapping[str, Any]) -> dict[str, Any]:
    """What a grid notes with a trial that has one of its points; nothing if it has none."""
    wanted = [params.get(name) for name in grid._param_names]
    for index, point in enumerate(grid._all_grids):
        if all(map(_same, point, wanted)):
            return {"search_space": grid._search_space, "grid_id": index}
    return {}


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
