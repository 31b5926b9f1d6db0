"""What is wrong with the fields of a study, in one line for people.

Invariant: it names the field as it is written in a file, and what was given.
"""

from __future__ import annotations

import re
from typing import Final

from pydantic import BaseModel, ValidationError

from orchestrator.submission.overrides import setting_names
from workers.passwords import hide
from workers.protocol.errors import nearest
from workers.protocol.parameters import CategoricalDimension, FloatDimension, IntDimension
from workers.protocol.spec import StudySpec
from workers.protocol.study_options import (
    BudgetSpec,
    CodeSpec,
    KeepSpec,
    ResourcesSpec,
    ShareSpec,
    StopSpec,
    WandbSpec,
    WarmStart,
)

#: The tags of the dimensions, which pydantic puts into the path of an error.
_TAGS: Final[dict[str, type[BaseModel]]] = {
    "float": FloatDimension,
    "int": IntDimension,
    "categorical": CategoricalDimension,
}

_SECTIONS: Final[dict[str, type[BaseModel]]] = {
    "resources": ResourcesSpec,
    "share": ShareSpec,
    "keep": KeepSpec,
    "budget": BudgetSpec,
    "stop": StopSpec,
    "wandb": WandbSpec,
    "code": CodeSpec,
    "from": WarmStart,
}


def explain_invalid(error: ValidationError) -> str:
    """The first problem, in one line; a name that is unknown before what is missing for it."""
    problems = error.errors()
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    first = [*unknown, *problems][0]
    path = [str(part) for part in first["loc"]]
    owner: type[BaseModel] = StudySpec
    if path[:1] == ["space"] and len(path) > 2 and path[2] in _TAGS:
        owner = _TAGS[path.pop(2)]
        if path[2:3] == ["choices"]:
            path = path[:4]  # what may be one of several kinds is named by each
    elif len(path) > 1 and path[0] in _SECTIONS:
        owner = _SECTIONS[path[0]]
    name, value = ".".join(path), first["input"]
    shown = hide(repr(value))
    if first["type"] == "extra_forbidden":
        known = setting_names(owner)
        hint = nearest(path[-1], known) or f"; there are {', '.join(known)}"
        return f"{name} = {shown}: no such setting{hint}"
    if first["type"] == "missing":
        return f"{name} is missing; give it a value"
    if first["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        given = value.get("type") if isinstance(value, dict) else value
        return (
            f"{name}.type = {given!r}{nearest(str(given), _TAGS)}; it is one of {', '.join(_TAGS)}"
        )
    return _explain_value(name, shown, first["type"], first["msg"])


def _explain_value(name: str, shown: str, kind: str, message: str) -> str:
    """What is wrong with the value of a field that there is."""
    if re.search(r"\.choices\.\d+$", name):
        return f"{name} = {shown}: a choice is text, a number, true, false or null"
    if name == "keep.models":
        return f"{name} = {shown}: write `all`, or `best 3`, of 1 to 100"
    if kind == "string_pattern_mismatch":
        return (
            f"{name} = {shown}: use letters, digits, dots, dashes and underscores, with a letter"
            " or a digit first"
        )
    message = message.removeprefix("Value error, ").replace("Input should", "it should")
    return f"{name} = {shown}: {message}" if name else message
