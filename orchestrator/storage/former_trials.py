"""Warm start: the complete trials of another study, for the sampler to learn from.

They lie in a study of their own beside the one that they were given to (`NAME@from`), as they were
when it began; the sampler alone sees them, as trials before its own.

Invariant: a former trial is none of the study's: it is not counted, never the best, never shown.
"""

from __future__ import annotations

import copy
from typing import Final

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from orchestrator.storage.attributes import ATTR, former_name
from orchestrator.storage.known_studies import known_studies
from orchestrator.storage.opening import load_readonly, source_url
from workers.logs import get_logger
from workers.protocol.errors import InvalidInputError, StudyNotKnownError, nearest
from workers.protocol.spec import StudySpec
from workers.settings import Settings

log = get_logger(__name__)

#: How many of another study's trials are taken, the latest: samplers slow down with each.
MOST: Final = 1_000

#: The study attribute that says that all were taken.
_TAKEN_ATTR: Final = f"{ATTR}from"

#: Draws nothing: the study that holds former trials is never asked.
_NO_SAMPLER: Final = optuna.samplers.RandomSampler()

#: The trial attribute that says where a former trial is from.
_ORIGIN_ATTR: Final = f"{ATTR}from"


def former_trials(spec: StudySpec, storage: BaseStorage, settings: Settings) -> list[FrozenTrial]:
    """The trials that a study was given, taken over now if they were not before.

    Args:
        spec: The study.
        storage: Its own, open for writing.
        settings: Where studies of this fleet are kept.

    Raises:
        InvalidInputError: There is no such study, or it has other directions.
    """
    if spec.warm_start is None:
        return []
    name = former_name(spec.name)
    try:
        study = optuna.load_study(study_name=name, storage=storage)
        if _TAKEN_ATTR in study.user_attrs:
            return study.get_trials(deepcopy=False)
        storage.delete_study(study._study_id)  # somebody was killed in the middle of it
    except KeyError:
        pass
    found = complete_trials(spec, settings)
    study = optuna.create_study(
        study_name=name, storage=storage, directions=spec.all_directions, sampler=_NO_SAMPLER
    )
    study.add_trials(found)
    study.set_user_attr(_TAKEN_ATTR, spec.warm_start.model_dump(mode="json"))
    log.info("former_trials_taken", study=spec.name, source=spec.warm_start.study, count=len(found))
    return study.get_trials(deepcopy=False)


def complete_trials(spec: StudySpec, settings: Settings) -> list[FrozenTrial]:
    """The latest complete trials of the study that another one starts from.

    Raises:
        InvalidInputError: There is no such study, or it has other directions.
    """
    source = spec.warm_start
    if source is None:
        return []
    try:
        study = load_readonly(source_url(source, settings), source.study)
    except StudyNotKnownError as error:
        meant = nearest(source.study, known_studies(settings))
        raise StudyNotKnownError(f"from = {source.study!r}: {error}{meant}") from error
    theirs = [direction.name.lower() for direction in study.directions]
    if theirs != spec.all_directions:
        raise InvalidInputError(
            f"from = {source.study!r}: it goes towards {theirs}, and this study towards"
            f" {spec.all_directions}; its trials would mislead"
        )
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    found = [copy.copy(trial) for trial in complete[-MOST:]]
    for trial in found:
        trial.user_attrs = {_ORIGIN_ATTR: f"{source.study}:{trial.number}"}
        trial.intermediate_values = {}
    return found
