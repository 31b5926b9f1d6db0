"""A study's specification with what people have it go on by: more trials, budgets, another share.

Invariant: nothing changes that any of its trials means, and nothing of which there is to be more
becomes less.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from workers.passwords import hide, learn_from
from workers.protocol.errors import InvalidInputError, nearest
from workers.protocol.plain import plain_text
from workers.protocol.spec import EXTENDABLE, StudySpec

#: The settings that a study can be extended by. What code travels with it is handed in with it.
CHANGEABLE: Final = EXTENDABLE - {"code"}

#: Of which there is only to be more.
_GROWING: Final = ("trials", "timeout", "budget.slot_hours", "budget.gpu_hours")


def extended(spec: StudySpec, changes: Mapping[str, Any]) -> StudySpec:
    """A specification with other settings; of a group, such as `stop`, those that are given.

    Args:
        spec: As it is.
        changes: By their names in a study file; None for none of it.

    Raises:
        InvalidInputError: One cannot be changed, cannot be so, or would be less than it is.
    """
    for name in changes:
        _check_changeable(spec.name, name)
    fields = json.loads(spec.model_dump_json(by_alias=True))
    for name, change in changes.items():
        is_part = isinstance(change, Mapping) and isinstance(fields.get(name), dict)
        fields[name] = {**fields[name], **change} if is_part else change
    try:
        after = StudySpec.model_validate(fields)
    except ValidationError as error:
        raise InvalidInputError(f"study {spec.name!r}: {_explain(error)}") from error
    for setting in _GROWING:
        _check_more(spec, after, setting)
    return after


def value_of(spec: StudySpec, setting: str) -> Any:
    """What a study has for a dotted name such as `stop.target`."""
    found: Any = spec
    for name in setting.split("."):
        found = getattr(found, name)
    return found


def changed_settings(before: StudySpec, after: StudySpec) -> dict[str, tuple[Any, Any]]:
    """By dotted name, what two specifications of one study have that may change."""
    pairs = (
        _flat(each.model_dump(mode="json", include=set(CHANGEABLE))) for each in (before, after)
    )
    old, new = pairs
    return {
        name: (old.get(name), new.get(name))
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    }


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in fields.items():
        found |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return found


def _check_changeable(study: str, name: str) -> None:
    if name not in CHANGEABLE:
        known = ", ".join(sorted(CHANGEABLE))
        raise InvalidInputError(
            f"study {study!r}: {name} cannot change while it is there{nearest(name, CHANGEABLE)};"
            f" what can, beside a wider space: {known}"
        )


def _check_more(before: StudySpec, after: StudySpec, setting: str) -> None:
    old, new = value_of(before, setting), value_of(after, setting)
    if new is None or new == old:
        return
    if old is None:
        raise InvalidInputError(
            f"study {before.name!r} has no {setting}: there is none to extend; to limit it, change"
            " its file and hand it in again"
        )
    if not new >= old:
        raise InvalidInputError(
            f"study {before.name!r}: {setting} = {new:g} is less than it has, {old:g}; to end it"
            f" sooner, `trialfleet stop {before.name}`"
        )


def _explain(error: ValidationError) -> str:
    """What was wrong first; of a group, or of all of it, without what it is: that hides why."""
    first = error.errors(include_url=False)[0]
    name, given = ".".join(str(part) for part in first["loc"]), first["input"]
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    shown = f"{name}: " if name else ""
    if isinstance(given, str | float | int | None):
        learn_from(given if isinstance(given, str) else None)
        shown = f"{name} = {plain_text(hide(repr(given)), 100)}: "
    return plain_text(hide(shown + message), 400)
