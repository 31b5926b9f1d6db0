"""The JSON schema of a study file, by which editors complete and check one while it is written.

Invariant: what the schema allows for a single field is what `load_study` reads; what only several
fields together make wrong is left to submission.
"""

from __future__ import annotations

from typing import Any, Final

from orchestrator.submission.algorithms import PRUNERS, SAMPLERS
from workers.protocol.durations import DURATION_PATTERN
from workers.protocol.finetune import FinetuneConfig
from workers.protocol.spec import FINETUNE, StudySpec

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

#: The validators of a study's fields that take more than the fields' own types.
_DURATIONS: Final = "_parse_duration"
_SHORT_FORMS: Final = "_expand_name"

_DURATION: Final = {"type": "string", "pattern": DURATION_PATTERN, "examples": ["90s", "2h"]}


def study_schema() -> dict[str, Any]:
    """The schema, as plain JSON."""
    schema = StudySpec.model_json_schema(by_alias=True)
    fields: dict[str, Any] = schema["properties"]
    schema["required"] = []  # a study's name is its file's, where there is none
    for name in _fields_of(_DURATIONS):
        _allow(fields[name], _DURATION)
    for name, known in zip(("sampler", "pruner"), (SAMPLERS.classes, PRUNERS.classes), strict=True):
        _restrict_type(schema["$defs"], fields[name], known)
    for name in _fields_of(_SHORT_FORMS):
        _allow(fields[name], {"type": "string"})
    _allow(fields["from"], {"type": "string"})
    for definition in schema["$defs"].values():
        _allow_short_conditions(definition)
    for field in fields.values():
        _allow(field, {"type": "null"})  # a key with nothing behind it
    _add_finetune(schema)
    return {"$schema": _DIALECT, **schema, "title": "A study of trialfleet"}


def _fields_of(validator: str) -> tuple[str, ...]:
    """The fields that a validator of the study's sees to."""
    return StudySpec.__pydantic_decorators__.field_validators[validator].info.fields


def _allow(field: dict[str, Any], form: dict[str, Any]) -> None:
    """Have a field take one more form."""
    if "anyOf" in field:
        if form not in field["anyOf"]:
            field["anyOf"].append(form)
        return
    about = {"title", "description", "default"}
    own = {key: field.pop(key) for key in list(field) if key not in about}
    field["anyOf"] = [own, form]


def _restrict_type(definitions: dict[str, Any], field: dict[str, Any], known: Any) -> None:
    """Say which samplers, or pruners, there are."""
    definition = definitions[field["$ref"].rpartition("/")[2]]
    definition["properties"]["type"]["examples"] = list(known)


def _allow_short_conditions(definition: dict[str, Any]) -> None:
    """Have a condition take one value in the place of a list."""
    when = definition.get("properties", {}).get("when")
    if when is not None:
        several = when["additionalProperties"]
        when["additionalProperties"] = {"anyOf": [several, *several["items"]["anyOf"]]}
        _allow(when, {"type": "null"})


def _add_finetune(schema: dict[str, Any]) -> None:
    """Describe the `config` of the built-in objective, where that is the study's."""
    settings = FinetuneConfig.model_json_schema(ref_template="#/$defs/finetune.{model}")
    for name, definition in settings.pop("$defs", {}).items():
        schema["$defs"][f"finetune.{name}"] = definition
    schema["$defs"]["finetune"] = _without_requirements(settings)
    for name in [each for each in schema["$defs"] if each.startswith("finetune.")]:
        schema["$defs"][name] = _without_requirements(schema["$defs"][name])
    schema["if"] = {
        "properties": {"objective": {"enum": [FINETUNE, None]}},
    }
    schema["then"] = {
        "properties": {"config": {"anyOf": [{"$ref": "#/$defs/finetune"}, {"type": "null"}]}}
    }


def _without_requirements(definition: dict[str, Any]) -> dict[str, Any]:
    """A part of a `config` whose other settings may be parameters of the space."""
    return {key: value for key, value in definition.items() if key != "required"}
