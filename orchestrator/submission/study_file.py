"""A study file: YAML 1.2 as people write it, to plain values.

By the core schema of YAML 1.2: `no` and `on` are text, `010` is 10 and `0o10` is 8, `1e-5` is a
number, `1:30` and dates are text; merge keys (`<<`) are understood, as everywhere. Keys are text.

Invariant: nothing is built but text, numbers, booleans, None, lists and mappings.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from workers.protocol.errors import InvalidInputError
from workers.texts.encodings import encoding_of

#: How many values a file may come to once its aliases are followed.
_MAX_VALUES: Final = 200_000

_TAG: Final = "tag:yaml.org,2002:"

#: The core schema: https://yaml.org/spec/1.2.2/#1032-tag-resolution
_SCHEMA: Final = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
)

_TEMPLATE: Final = re.compile(r"\{\{.*?\}\}|\{%.*?%\}")


class _Loader(yaml.SafeLoader):
    """The core schema, with keys as they are written, each once."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == f"{_TAG}merge":
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise _error("a key is text or a number", key_node)
            if key_node.value in seen:
                raise _error(f"the key {key_node.value!r} comes twice", key_node)
            seen.add(key_node.value)
            key_node.tag = f"{_TAG}str"
        return super().construct_mapping(node, deep=deep)

    def construct_integer(self, node: Any) -> int:
        text = self.construct_scalar(node)
        if text.startswith(("0o", "0x")):
            return int(text, 0)
        if len(text) > 4000:
            raise _error("a number of more than 4,000 digits", node)
        return int(text)


def _error(problem: str, node: Any) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


# of its own: the class above holds those of YAML 1.1
_Loader.yaml_implicit_resolvers = {}
_Loader.yaml_constructors = dict(yaml.SafeLoader.yaml_constructors)
for _name, _pattern, _first in _SCHEMA:
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_integer)

for _unwanted in ("timestamp", "binary", "set", "omap", "pairs"):
    _Loader.yaml_constructors.pop(f"{_TAG}{_unwanted}", None)


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would take for something else than text; no aliases."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - they are harder to read
        return True


for _name, _pattern, _first in _SCHEMA:
    _Dumper.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"^(?:{_pattern})$"), _first)


def read_study_file(path: Path) -> dict[str, Any]:
    """The fields of a study file.

    Raises:
        InvalidInputError: It cannot be read, with the line and the way out.
    """
    fields = read_value(_read_text(path), path.name)
    if not isinstance(fields, dict):
        raise InvalidInputError(
            f"{path.name} holds {'nothing' if fields is None else type(fields).__name__}; a study"
            " is a mapping with `name`, `objective` and so on"
        )
    return fields


def write_study_file(fields: Mapping[str, Any]) -> str:
    """The text of a study file that reads back as these fields."""
    return str(yaml.dump(dict(fields), Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def read_value(text: str, origin: str) -> Any:
    """One value, as it would be behind a key of a study file.

    Args:
        text: The value as it is written.
        origin: Where it is from, for messages.

    Raises:
        InvalidInputError: It is no YAML.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is not None:
            _count_values(node, {})
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except RecursionError as error:
        raise InvalidInputError(f"{origin}: it is nested too deep; flatten it") from error
    except yaml.YAMLError as error:
        raise InvalidInputError(f"{origin}{_explain(error, text)}") from error


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        is_module = path.suffix not in {".yaml", ".yml"} and re.fullmatch(r"[\w.]+", str(path))
        hint = f", or write {path}:objective" if is_module else ""
        raise InvalidInputError(
            f"{path}: there is no such study file; give the path of a YAML file{hint}"
        ) from error
    except OSError as error:
        raise InvalidInputError(f"{path}: cannot be read as a study file: {error}") from error
    if path.suffix == ".py":
        raise InvalidInputError(f"{path} is no YAML; name the objective in it: {path}:objective")
    encoding = encoding_of(content)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InvalidInputError(
            f"{path.name}, line {line}: not {encoding.upper()}: {error.reason}; save it as UTF-8"
        ) from error


def _count_values(node: Any, known: dict[int, int]) -> int:
    """How many values a node stands for, each alias counted as what it names.

    Raises:
        yaml.YAMLError: Too many, or it holds itself.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in known:
        if not known[id(node)]:
            raise _error("an alias names what it lies in", node)
        return known[id(node)]
    known[id(node)] = 0
    parts = (
        [part for pair in node.value for part in pair]
        if isinstance(node, yaml.MappingNode)
        else node.value
    )
    known[id(node)] = 1 + sum(_count_values(part, known) for part in parts)
    if known[id(node)] > _MAX_VALUES:
        raise _error(f"its aliases come to more than {_MAX_VALUES} values", node)
    return known[id(node)]


def _explain(error: yaml.YAMLError, text: str) -> str:
    """Where a file is no YAML, and what to do about it, in one line."""
    template = _TEMPLATE.search(text)
    if template is not None:
        line = text[: template.start()].count("\n") + 1
        return f", line {line}: the template {template[0]!r} was not rendered; render it first"
    mark = getattr(error, "problem_mark", None)
    where = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    if "'\\t'" in problem:
        return f"{where}: not YAML: a tab; indent with blanks"
    if "single document" in str(error):
        return f"{where}: it holds several documents (`---`); a study file is one"
    if "could not determine a constructor" in problem:
        return f"{where}: {problem.rpartition(' ')[2]} is no type of a study file; leave it out"
    return f"{where}: not YAML: {problem}; mend it"
