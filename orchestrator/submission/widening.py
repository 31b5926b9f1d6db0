"""A study's space made wider: what may be asked for, and the study's trials in the wider space.

Optuna takes no further choices of a parameter, and leaves one whose bounds differ out of what it
draws together. So the trials are copied, with their numbers, as if they had been drawn from the
wider space; the study as it was is kept beside it (`NAME@1`).

Invariant: no value of a trial changes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from optuna.samplers import BruteForceSampler, GridSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from orchestrator.storage.attributes import IDENTITY_ATTR, NOT_GOING_ON, SPEC_ATTR, WHOLE_ATTR
from orchestrator.storage.opening import open_reader
from orchestrator.storage.succession import Snapshot, succeed
from orchestrator.submission.algorithms import SAMPLERS, make_pruner, make_sampler
from orchestrator.submission.finetune_check import check_finetune
from orchestrator.submission.further_grid import attrs_in
from orchestrator.submission.gaps import refuse_gaps
from orchestrator.submission.invalid_fields import explain_invalid
from orchestrator.submission.model_check import check_models, kept_checks
from orchestrator.submission.rehearsal import rehearse
from orchestrator.submission.space import (
    check_space,
    distributions,
    exists,
    stored_value,
    suggestion_order,
    values_of,
)
from workers.logs import get_logger
from workers.protocol.errors import InvalidInputError
from workers.protocol.spec import FINETUNE, StudySpec
from workers.protocol.wider_space import in_order_of, is_same_in_wider_space, refuse_narrower
from workers.settings import Settings

log = get_logger(__name__)

#: What CMA-ES keeps: positions between bounds that are others now. It begins anew.
_CMA: Final = "cma:"

#: What samplers keep with trials and is not true in another space.
_POSITIONS: Final = (_CMA, "tpe:relative_params", "gp:relative_params")

_FIXED: Final = "fixed_params"


def widened(spec: StudySpec, space: object, settings: Settings) -> StudySpec:
    """A study with a wider space.

    Args:
        spec: The study as it is.
        space: The whole space, as in a study file.
        settings: Which samplers may be imported, and where checks are kept.

    Raises:
        InvalidInputError: The space is not wider, or nothing can be suggested from it.
    """
    if not spec.space:
        raise InvalidInputError(
            f"study {spec.name!r} has no `space`: its objective suggests its own parameters; widen"
            " them there. Optuna goes on with other bounds, and takes no further choices"
        )
    try:
        wider = StudySpec.model_validate({**json.loads(spec.model_dump_json()), "space": space})
    except ValidationError as error:
        raise InvalidInputError(f"study {spec.name!r}: {explain_invalid(error)}") from error
    check_space(wider)
    refuse_narrower(spec.space, wider.space)
    wider = wider.model_copy(update={"space": in_order_of(spec.space, wider.space)})
    if SAMPLERS.find(spec.sampler.type) is BruteForceSampler:
        refuse_gaps(spec, wider)
    sampler = make_sampler(wider, allowed=settings.samplers)
    rehearse(wider, sampler, make_pruner(wider, allowed=settings.samplers))
    if wider.objective == FINETUNE:
        check_finetune(wider, settings.home)
        check_models(wider, kept_checks(settings))
    return wider


def news_of(before: StudySpec, after: StudySpec) -> list[str]:
    """What people should know of a space that has become wider."""
    new = [name for name in after.space if name not in before.space]
    return [
        f"{name} is new, and the trials before lack it: samplers that draw parameters together"
        f" (tpe, gp, cmaes) draw it by itself; if they all had one value in its place, say"
        f" `default: VALUE` in space.{name}"
        for name in new
        if after.space[name].default is None
    ]


def widen_stored(url: str, spec: StudySpec) -> str | None:
    """Have a study's storage go on in a wider space, if that is what is wanted now.

    Args:
        url: The storage, which nobody has open for writing.
        spec: The study, as it is wanted.

    Returns:
        The name under which the study is kept as it was; None where nothing was to be done.

    Raises:
        InvalidInputError: Somebody writes the storage.
    """
    storage = open_reader(url)
    if storage is None or not is_to_be_widened(storage, spec):
        return None
    former = succeed(url, spec.name, partial(_in_wider_space, after=spec))
    log.info("space_widened", study=spec.name, former=former)
    return former


def is_to_be_widened(storage: BaseStorage, spec: StudySpec) -> bool:
    """Whether a study is wanted in a wider space than its storage has it in, and the same else."""
    before = stored_spec(storage, spec.name)
    return before is not None and is_same_in_wider_space(before, spec)


def stored_spec(storage: BaseStorage, name: str) -> StudySpec | None:
    """A study's specification as its storage has it; None where it has none that can be read."""
    try:
        attrs = storage.get_study_user_attrs(storage.get_study_id_from_name(name))
        return StudySpec.read(attrs[SPEC_ATTR])
    except (KeyError, ValueError):
        return None


def _in_wider_space(study: Snapshot, after: StudySpec) -> Snapshot:
    before = StudySpec.read(study.user_attrs[SPEC_ATTR])
    attrs = {name: each for name, each in study.user_attrs.items() if name not in NOT_GOING_ON}
    attrs[SPEC_ATTR] = after.model_dump_json()
    attrs[IDENTITY_ATTR] = json.dumps(after.identity())
    moving = _Moving(before, after)
    trials = [moving.move(trial) for trial in study.trials]
    system_attrs = {k: each for k, each in study.system_attrs.items() if not k.startswith(_CMA)}
    return Snapshot(study.directions, attrs, system_attrs, trials)


class _Moving:
    """Moves trials from one space into a wider one."""

    def __init__(self, before: StudySpec, after: StudySpec) -> None:
        self._before = before
        self._after = after
        self._space = distributions(after)
        self._order = suggestion_order(after)
        #: the points of a grid that trials have
        self._taken: set[int] = set()
        sampler = make_sampler(after) if SAMPLERS.find(after.sampler.type) is GridSampler else None
        self._grid = sampler if isinstance(sampler, GridSampler) else None

    def move(self, trial: FrozenTrial) -> FrozenTrial:
        """A trial as if it had been drawn from the wider space."""
        moved = copy.copy(trial)
        is_whole = self._is_whole(trial)
        params = self._renamed(trial.params)
        if is_whole or trial.state.is_finished():
            params |= self._defaults(trial.params)
        # as new trials have them: brute force makes a tree of their order
        asked = [name for name in self._order if name in params]
        params = {name: params[name] for name in dict.fromkeys([*asked, *params])}
        moved.params = params
        moved.distributions = {
            name: self._space.get(name) or trial.distributions[name] for name in params
        }
        moved.system_attrs = self._attrs(trial, params, is_whole=is_whole)
        return moved

    def _is_whole(self, trial: FrozenTrial) -> bool:
        """Whether a trial is under way with all that it is to have."""
        values = values_of(self._before, trial.params)
        return trial.state is TrialState.RUNNING and all(
            name in values or not exists(dimension, values)
            for name, dimension in self._before.space.items()
        )

    def _renamed(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters as the storage is to have them: choices may have other names now."""
        return {
            name: stored_value(self._after, f"space.{name}", name, value)
            for name, value in values_of(self._before, params).items()
        }

    def _defaults(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """What the trial had in the place of parameters that are new."""
        values, found = values_of(self._before, params), {}
        for name in self._order:
            default, before = self._after.space[name].default, self._before.space.get(name)
            is_new = name not in params and (before is None or not exists(before, values))
            if is_new and default is not None and exists(self._after.space[name], values):
                values[name] = default
                found[name] = stored_value(self._after, f"space.{name}.default", name, default)
        return found

    def _attrs(
        self, trial: FrozenTrial, params: Mapping[str, Any], *, is_whole: bool
    ) -> dict[str, Any]:
        attrs = {k: each for k, each in trial.system_attrs.items() if not k.startswith(_POSITIONS)}
        if _FIXED in attrs:
            attrs[_FIXED] = self._renamed(attrs[_FIXED])
        if is_whole:
            attrs[WHOLE_ATTR] = True
        if self._grid is not None and attrs.pop("grid_id", None) is not None:
            values = values_of(self._after, params)
            is_begun = trial.state is TrialState.RUNNING and not is_whole
            attrs |= attrs_in(
                self._grid,
                params,
                lambda name: is_begun or not exists(self._after.space[name], values),
                self._taken,
            )
        return attrs
