#!/usr/bin/env python
"""Writes the reference of settings, commands and study keys from the code that reads them.

    python ops/reference.py             write ops/guides/reference
    python ops/reference.py --check     say what is out of date, and end with 1

Invariant: nothing in those pages was written by hand.
"""

from __future__ import annotations

import argparse
import html
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import typer
from pydantic import ByteSize
from pydantic.fields import FieldInfo
from typer.cli import get_docs_for_click

from orchestrator.cli import app
from orchestrator.submission.schema import study_schema
from workers.settings import Settings

PAGES: Final = Path(__file__).parent / "guides" / "reference"

_MADE: Final = "<!-- written by ops/reference.py; change the code, not this page -->\n\n"

_DAY: Final = 86400.0

#: Titles of the schema's definitions, where a reader looks for another word.
_TITLES: Final = {"finetune": "config of finetune"}


_KINDS: Final = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "`true`, `false`",
    "null": "nothing",
}
_PLAIN: Final = set(_KINDS.values()) - {"nothing"}


def pages() -> dict[str, str]:
    """Each page of the reference by its file's name."""
    return {
        "settings.md": _MADE + "".join(_settings()),
        "commands.md": _MADE + _commands(),
        "study.md": _MADE + "".join(_study_keys()),
    }


def _settings() -> Iterator[str]:
    yield (
        "# Settings\n\n"
        "Read once, from the environment, where a process of the fleet starts. One that holds\n"
        "what it does not take ends the process with a line that names it.\n\n"
        "| variable | default | is |\n|---|---|---|\n"
    )
    for name, field in Settings.model_fields.items():
        variable = f"FLEET_{name.upper()}"
        about = (field.description or "").removeprefix(f"`{variable}`: ")
        yield f"| `{variable}` | {_default_of(field)} | {_cell(about)} |\n"


def _default_of(field: FieldInfo) -> str:
    value = field.default
    if field.default_factory is not None or value in {None, ()}:
        return ""
    if isinstance(value, ByteSize):
        return f"`{value.human_readable(decimal=True).replace('.0', '')}`"
    if field.annotation is float and value >= _DAY:
        return f"`{value / _DAY:g}d`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _commands() -> str:
    root = typer.main.get_command(app)
    context = typer.Context(root, info_name="trialfleet")
    lines = ["# Commands\n", f"{root.help}\n", "| command | does |", "|---|---|"]
    names = root.list_commands(context)  # type: ignore[attr-defined]
    commands = [root.get_command(context, name) for name in names]  # type: ignore[attr-defined]
    for command in commands:
        does = " ".join((command.help or "").split("\n\n")[0].split())
        lines.append(f"| [`{command.name}`](#trialfleet-{command.name}) | {_cell(does)} |")
    lines.append(
        "\nEach takes `--json` and prints one document. Exit codes: 0 done; 1 failed, or no trial\n"
        "is complete; 2 bad input, of which one line says what it is and the way out; 130\n"
        "interrupted.\n"
    )
    texts = (
        get_docs_for_click(obj=command, ctx=context, indent=1, call_prefix="trialfleet")
        for command in commands
    )
    return "\n".join(lines) + "\n" + html.unescape("".join(texts)).rstrip() + "\n"


def _study_keys() -> Iterator[str]:
    schema = study_schema()
    definitions: Mapping[str, Any] = schema["$defs"]
    yield (
        "# Keys of a study file\n\n"
        "What `trialfleet schema` prints, as tables. A key that nobody knows is refused, with the\n"
        "nearest one that is known. In a script they are the arguments of `Study(...)`; `from` is\n"
        "`warm_start` there.\n\n"
    )
    yield from _table(schema["properties"], definitions)
    for name in _reached(schema, definitions):
        title = _TITLES.get(name, _title(name))
        yield f"\n## {title}\n\n"
        if about := definitions[name].get("description"):
            yield f"{about}\n\n"
        yield from _table(definitions[name].get("properties", {}), definitions)


def _reached(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> list[str]:
    """The definitions in the order in which a reader meets them."""
    met: list[str] = []
    waiting = [*_names_in(schema["properties"]), "finetune"]
    while waiting:
        name = waiting.pop(0)
        if name not in met:
            met.append(name)
            waiting[:0] = _names_in(definitions[name])
    return [name for name in met if definitions[name].get("properties")]


def _names_in(schema: Any) -> list[str]:
    if isinstance(schema, Mapping):
        own = [schema["$ref"].rpartition("/")[2]] if isinstance(schema.get("$ref"), str) else []
        return own + [name for part in schema.values() for name in _names_in(part)]
    if isinstance(schema, list):
        return [name for part in schema for name in _names_in(part)]
    return []


def _table(fields: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[str]:
    if not fields:
        return
    yield "| key | takes | default | is |\n|---|---|---|---|\n"
    for name, field in fields.items():
        default = field.get("default")
        has_section = isinstance(default, dict)
        shown = "" if default in (None, []) or has_section else f"`{json.dumps(default)}`"
        yield (
            f"| `{name}` | {_cell(_shape(field, definitions))} | {shown} |"
            f" {_cell(field.get('description', ''))} |\n"
        )


def _shape(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """What a field takes, in a few words."""
    if "$ref" in field:
        return _linked(field["$ref"].rpartition("/")[2], definitions)
    for key in ("anyOf", "oneOf", "allOf"):
        if key in field:
            return _either([_shape(each, definitions) for each in field[key]])
    if "const" in field or "enum" in field:
        values = field.get("enum", [field.get("const")])
        return ", ".join(f"`{value}`" for value in values if value is not None)
    return _container(field, definitions) or _plain(field)


def _either(forms: list[str]) -> str:
    if set(forms) >= _PLAIN:
        return "a value"  # of any plain type
    return " or ".join(dict.fromkeys(form for form in forms if form != _KINDS["null"]))


def _container(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str | None:
    if field.get("type") == "array":
        return f"a list of: {_shape(field.get('items', {}), definitions)}"
    if field.get("type") == "object":
        values = field.get("additionalProperties")
        is_typed = isinstance(values, Mapping) and values
        return f"names to: {_shape(values, definitions)}" if is_typed else "a mapping"
    return None


def _plain(field: Mapping[str, Any]) -> str:
    if field.get("pattern") and field.get("examples"):
        return "such as " + ", ".join(f"`{each}`" for each in field["examples"])
    kind = field.get("type", "anything")
    return _KINDS.get(kind, kind) + _bounds(field)


def _bounds(field: Mapping[str, Any]) -> str:
    signs = {
        "minimum": "from", "exclusiveMinimum": "above",
        "maximum": "to", "exclusiveMaximum": "below",
    }  # fmt: skip
    found = [f"{sign} {field[key]:g}" for key, sign in signs.items() if key in field]
    return f" {' '.join(found)}" if found else ""


def _linked(name: str, definitions: Mapping[str, Any]) -> str:
    definition = definitions[name]
    if not definition.get("properties"):
        return _shape(definition, definitions)
    title = _TITLES.get(name, _title(name))
    return f"[{title}](#{title.lower().replace(' ', '-')})"


def _title(name: str) -> str:
    """`finetune.LoraConfig` is `lora`, `StopSpec` `stop`."""
    last = name.rpartition(".")[2]
    for ending in ("Spec", "Config", "Options"):
        last = last.removesuffix(ending)
    words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in last)
    return words.strip()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def undescribed() -> list[str]:
    """Settings, and keys of a study file, that lack a docstring."""
    schema = study_schema()
    known = {"study": schema, **{n: schema["$defs"][n] for n in _reached(schema, schema["$defs"])}}
    keys = [
        f"{name}.{key}"
        for name, definition in known.items()
        for key, field in definition["properties"].items()
        if not field.get("description") and "const" not in field
    ]
    return keys + [n for n, field in Settings.model_fields.items() if not field.description]


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if out of date")
    check = parser.parse_args().check
    old = [
        name
        for name, text in pages().items()
        if not (PAGES / name).exists() or (PAGES / name).read_text() != text
    ]
    for name in old:
        if check:
            print(f"{PAGES / name} is out of date; run python ops/reference.py", file=sys.stderr)
        else:
            (PAGES / name).write_text(pages()[name])
            print(PAGES / name)
    for each in undescribed():
        print(f"{each} has no docstring", file=sys.stderr)
    return 1 if (check and old) or undescribed() else 0


if __name__ == "__main__":
    sys.exit(main())
