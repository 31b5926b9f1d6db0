"""The attributes of studies and trials that the fleet itself keeps with the results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from workers.protocol.plain import OWN_PREFIX

#: Prefix of the attributes that the fleet itself keeps in the storage.
ATTR: Final = OWN_PREFIX

#: The study attribute that says that its sampler has nothing more to suggest.
EXHAUSTED_ATTR: Final = f"{ATTR}exhausted"

#: The study attribute that says how many trials its sampler has at most, where that is known.
NUM_POINTS_ATTR: Final = f"{ATTR}num_points"

#: The trial attribute that says which order asked for it, so that none is carried out twice.
ORDER_ATTR: Final = f"{ATTR}order"

#: The trial attribute that says which trial it retries.
RETRIES_ATTR: Final = f"{ATTR}retries"

#: The trial attribute that says at which rung a trial is paused, or to which one it was promoted.
RUNG_ATTR: Final = f"{ATTR}rung"

#: The study attribute that says what people want of it (a `Wish`), for when Redis forgot it.
WISH_ATTR: Final = f"{ATTR}wish"

#: The study attribute that says why no further trial is started, and with which traceback.
ENDED_BY_ATTR: Final = f"{ATTR}ended_by"

#: The study attribute that says how many trials had ended when somebody went on with the study.
FORGIVEN_ATTR: Final = f"{ATTR}forgiven"

#: The study attribute that holds the whole specification.
SPEC_ATTR: Final = f"{ATTR}spec"

#: The study attribute that holds what makes two submissions the same study.
IDENTITY_ATTR: Final = f"{ATTR}identity"

#: The study attribute that tells a study from an earlier one of its name that was removed.
GENERATION_ATTR: Final = f"{ATTR}generation"

#: The study attribute that says that `trialfleet run` alone is to go on with it.
BY_RUN_ATTR: Final = f"{ATTR}by_run"

#: The study attribute that marks which opening of a database may write.
WRITER_ATTR: Final = f"{ATTR}writer"

#: The study attribute that says of which end its `on_end` was told, and how that went.
END_TOLD_ATTR: Final = f"{ATTR}end_told"

#: The study attributes that hold the code that trials ran; a trial's own names the one it ran.
CODE_ATTR: Final = f"{ATTR}code:"

#: The study attribute that says which study holds the trials as they were in a narrower space.
FORMER_ATTR: Final = f"{ATTR}former"

#: The trial's system attribute that says that nothing more is to be drawn for it: it was under way
#: when its study's space became wider.
WHOLE_ATTR: Final = f"{ATTR}whole"

#: What is not known any more of a study that goes on in a wider space: that it is over, how many
#: points it has, and whose the storage is.
NOT_GOING_ON: Final = frozenset(
    {EXHAUSTED_ATTR, NUM_POINTS_ATTR, ENDED_BY_ATTR, END_TOLD_ATTR, WRITER_ATTR}
)


def is_paused(trial_attrs: Mapping[str, Any]) -> bool:
    """Whether a trial rests at a rung, or rested there when its study ended."""
    return bool(trial_attrs.get(RUNG_ATTR, {}).get("is_paused"))


def is_beside(study: str) -> bool:
    """Whether a study of a storage is none by itself, but stands beside another one."""
    return "@" in study


def narrower_name(study: str, count: int) -> str:
    """The study that holds the trials of another one as they were before its space grew."""
    return f"{study}@{count}"


def code_id(facts: Mapping[str, Any]) -> str:
    """A short name for facts about code, the same for the same facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def code_of(trial_attrs: Mapping[str, Any], study_attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The code that a trial ran; empty where it was not recorded."""
    found: dict[str, Any] = study_attrs.get(f"{CODE_ATTR}{trial_attrs.get(f'{ATTR}code')}", {})
    return found


def former_name(study: str) -> str:
    """The study, beside another one, that holds the trials which that one was given."""
    return f"{study}@from"


def told_end(study_attrs: Mapping[str, Any], num_trials: int) -> dict[str, Any] | None:
    """How `on_end` was told of the end of a study with so many trials; None if it was not."""
    told: dict[str, Any] | None = study_attrs.get(END_TOLD_ATTR)
    return told if told is not None and told["trials"] == num_trials else None
