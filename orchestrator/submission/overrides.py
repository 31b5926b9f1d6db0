"""What a command line sets of a study beside its file: `--set config.epochs=1`.

Invariant: a value is what it would be in the file; a name that the study cannot have is refused.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from orchestrator.submission.study_file import read_study_file, read_value
from workers.protocol.errors import InvalidInputError, nearest
from workers.protocol.parameters import CategoricalDimension, FloatDimension, IntDimension
from workers.protocol.spec import FINETUNE, StudySpec

#: Names that are so alike are taken for one that was misspelt.
_ALIKE: Final = 0.85

#: Settings whose short form is one of their fields alone.
_SHORT_FORMS: Final = {"sampler": "type", "pruner": "type", "from": "study"}

_DIMENSION_FIELDS: Final = frozenset().union(
    *(kind.model_fields for kind in (FloatDimension, IntDimension, CategoricalDimension))
)


def with_overrides(fields: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
    """The fields of a study with others laid over them, the later over the earlier.

    Args:
        fields: As in YAML.
        texts: Each `NAME=VALUE`: a dotted name, and a value as in YAML.

    Raises:
        InvalidInputError: A text is none of these, or its name is none of the study's.
    """
    found = deepcopy(dict(fields))
    for text in texts:
        name, equals, value = text.partition("=")
        path = name.strip().split(".")
        if not equals or not all(path):
            raise InvalidInputError(
                f"--set {text!r}: write NAME=VALUE, such as --set config.epochs=1"
            )
        _override(found, text, path, read_value(value, f"--set {text!r}"))
    return found


def space_fields(spec: StudySpec, file: Path | None, texts: Sequence[str]) -> dict[str, Any]:
    """A whole space: that of a study or of a file, with fields laid over it.

    Args:
        spec: The study.
        file: A study file, or one that holds a space alone.
        texts: As for `with_overrides`, of the space alone.

    Raises:
        InvalidInputError: The file holds no space, or a text is of something else.
    """
    space = json.loads(spec.model_dump_json(exclude_defaults=True)).get("space", {})
    if file is not None:
        fields = read_study_file(file)
        space = fields.get("space", {}) if "name" in fields else fields.get("space", fields)
    found: dict[str, Any] = with_overrides({"space": space}, texts)["space"]
    return found


def extension_fields(
    spec: StudySpec, file: Path | None, texts: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What a command line extends a study by: settings, and a whole space if there is another one.

    Args:
        spec: The study.
        file: A study file, or one that holds a space alone.
        texts: Each `NAME=VALUE`, of the space or of what may change while a study runs.

    Raises:
        InvalidInputError: A name cannot be changed, or the file holds no space.
    """
    of_space = [text for text in texts if text.startswith("space.")]
    changes = with_overrides({}, [text for text in texts if text not in of_space])
    if "space" in changes:
        raise InvalidInputError(
            "--set space=...: give the whole space as a file, by --space FILE, or what is other in"
            " it by name, such as --set space.learning_rate.high=0.1"
        )
    for name in ("trials", "timeout"):
        if changes.get(name, 0) is None:
            raise InvalidInputError(f"--set {name}=null: say how much of it there is to be")
    is_wider = file is not None or bool(of_space)
    return changes, space_fields(spec, file, of_space) if is_wider else None


def setting_names(owner: type[BaseModel] = StudySpec) -> list[str]:
    """The names of a study's settings, or of a part of them, as they are written."""
    return [each.alias or name for name, each in owner.model_fields.items()]


def _override(fields: dict[str, Any], text: str, path: list[str], value: Any) -> None:
    """Set one value, in place."""
    head, *rest = path
    if head not in setting_names():
        hint = nearest(head, setting_names()) or f"; there are {', '.join(setting_names())}"
        raise InvalidInputError(f"--set {text!r}: {head}: no such setting of a study{hint}")
    if not rest:
        fields[head] = value
    elif head == "space":
        _set_dimension(_mapping_at(fields, head, text), text, rest, value)
    else:
        if head in _SHORT_FORMS and isinstance(fields.get(head), str):
            fields[head] = {_SHORT_FORMS[head]: fields[head]}
        # the settings of the built-in objective are known, and checked as such
        is_open = head == "config" and fields.get("objective", FINETUNE) != FINETUNE
        _set_below(_mapping_at(fields, head, text), text, [head], rest, value, is_open=is_open)


def _set_dimension(space: dict[str, Any], text: str, path: list[str], value: Any) -> None:
    """Set a parameter's dimension, or one field of it."""
    name = _longest_key(space, path)
    if name is None:
        name = ".".join(path)
        if not isinstance(value, dict):
            without_field = ".".join(path[:-1]) if path[-1] in _DIMENSION_FIELDS else name
            hint = nearest(without_field, space) or f"; there are {', '.join(space) or 'none'}"
            raise InvalidInputError(f"--set {text!r}: space has no such parameter{hint}")
        space[name] = value
        return
    rest = path[name.count(".") + 1 :]
    if not rest:
        space[name] = value
        return
    field, *below = rest
    if field not in _DIMENSION_FIELDS:
        raise InvalidInputError(
            f"--set {text!r}: {field}: no such field of a parameter"
            f"{nearest(field, _DIMENSION_FIELDS)}; there are {', '.join(sorted(_DIMENSION_FIELDS))}"
        )
    dimension = _mapping_at(space, name, text)
    if below:
        _mapping_at(dimension, field, text)[".".join(below)] = value
    else:
        dimension[field] = value


def _set_below(
    node: dict[str, Any],
    text: str,
    before: list[str],
    path: list[str],
    value: Any,
    *,
    is_open: bool,
) -> None:
    """Set a value below a mapping of settings.

    Args:
        node: The mapping.
        text: What was written, for messages.
        before: The names that lead to the mapping.
        path: The names that lead on from it.
        value: The value.
        is_open: Whether the objective alone knows which names there are.
    """
    key = _longest_key(node, path)
    if key is None:
        key = path[0]
        if is_open:
            _refuse_misspelt(key, node, text, before)
    rest = path[key.count(".") + 1 :]
    if rest:
        below = _mapping_at(node, key, text)
        _set_below(below, text, [*before, key], rest, value, is_open=is_open)
    else:
        node[key] = value


def _longest_key(node: Mapping[str, Any], path: Sequence[str]) -> str | None:
    """The longest beginning of a path that is a key: keys may hold dots themselves."""
    starts = (".".join(path[:length]) for length in range(len(path), 0, -1))
    return next((start for start in starts if start in node), None)


def _mapping_at(node: dict[str, Any], key: str, text: str) -> dict[str, Any]:
    """The mapping under a key, made if there is nothing."""
    if node.get(key) is None:
        node[key] = {}
    found = node[key]
    if not isinstance(found, dict):
        raise InvalidInputError(
            f"--set {text!r}: {key} = {found!r} has no names below it; set it as a whole"
        )
    return found


def _refuse_misspelt(key: str, known: Mapping[str, Any], text: str, before: Sequence[str]) -> None:
    """Refuse a new name that is all but one that is there: `epoch` beside `epochs`."""
    others = [each for each in known if _without_digits(each) != _without_digits(key)]
    close = difflib.get_close_matches(key, others, n=1, cutoff=_ALIKE)
    if close:
        raise InvalidInputError(
            f"--set {text!r}: {'.'.join([*before, key])}: the study has no such setting; did you"
            f" mean {close[0]!r}? One that is new is written into the study file"
        )


def _without_digits(name: str) -> str:
    return re.sub(r"\d+", "", name)
