"""Generations: a study whose results were removed and that goes on, or comes again, is a new one.

The storage and Redis each carry the generation's id, drawn when the study is made in the storage.

Invariant: every pair of what they hold has one answer, and after it both hold the same generation,
and nothing of another one: no trial waits for a record that an earlier study of its name left.
"""

from __future__ import annotations

import uuid
from enum import Enum, auto
from typing import Final

import optuna

from orchestrator.storage.attributes import GENERATION_ATTR
from workers.coordination.studies import Studies
from workers.logs import get_logger

log = get_logger(__name__)

#: In the place of the id of a study that a release before this one stored: it had none.
UNNAMED: Final = ""


class Beginning(Enum):
    """How a study is gone on with."""

    GO_ON = auto()
    """Both hold the same generation."""
    NAME = auto()
    """The storage's has no id yet: it is given one, and what Redis holds is its own."""
    TAKE_STORED = auto()
    """Redis forgot it, or holds what is left of another: the storage alone counts."""
    ANEW = auto()
    """The storage has none: it is made there, and what Redis holds is of none that is left."""


def beginning(stored: str | None, known: str | None) -> Beginning:
    """How to go on with a study.

    Args:
        stored: The generation in the storage: None for no such study, `UNNAMED` for one without.
        known: The generation in Redis, or None.
    """
    if stored is None:
        return Beginning.ANEW
    if stored == UNNAMED:
        return Beginning.NAME
    return Beginning.GO_ON if stored == known else Beginning.TAKE_STORED


def stored_generation(storage: optuna.storages.BaseStorage, name: str) -> str | None:
    """The generation that a storage holds of a study; None without such a study."""
    try:
        study_id = storage.get_study_id_from_name(name)
    except KeyError:
        return None
    return str(storage.get_study_user_attrs(study_id).get(GENERATION_ATTR, UNNAMED))


def prepare(studies: Studies, name: str, stored: str | None) -> str:
    """Before the study is opened: drop from Redis what is not of its generation; which that is."""
    known = studies.origin(name).generation
    answer = beginning(stored, known)
    if answer in {Beginning.TAKE_STORED, Beginning.ANEW} and studies.has_trials(name):
        log.warning("earlier_study_forgotten", study=name, answer=answer.name)
        studies.forget(name)
    if answer is Beginning.ANEW:
        return uuid.uuid4().hex
    return stored or known or uuid.uuid4().hex
