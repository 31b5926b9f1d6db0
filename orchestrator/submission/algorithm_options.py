"""Options of samplers, pruners and what they take, checked against the signatures of their classes.

Invariant: an option that a class does not take, or not so, is refused by its name, with the nearest
one or with the type that is wanted.
"""

from __future__ import annotations

import collections.abc
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import optuna
from pydantic import ConfigDict, TypeAdapter, ValidationError

from workers.protocol.errors import InvalidInputError, nearest

#: What annotations of Optuna's name that its modules import for a type checker alone.
_NAMES: Final[Mapping[str, Any]] = {
    **vars(typing),
    **vars(collections.abc),
    **vars(optuna.distributions),
    "FrozenTrial": optuna.trial.FrozenTrial,
    "TrialState": optuna.trial.TrialState,
    "Study": optuna.Study,
    "np": np,
}


@dataclass(frozen=True)
class Option:
    """One option of a class."""

    name: str
    wanted: str
    """Its annotation, as written."""
    type: Any
    is_required: bool

    @property
    def parts(self) -> list[Any]:
        """The types of a union; of another type, that one."""
        is_union = isinstance(self.type, types.UnionType) or (
            typing.get_origin(self.type) is typing.Union
        )
        return list(typing.get_args(self.type)) if is_union else [self.type]

    @property
    def is_function(self) -> bool:
        """Whether it takes a function."""
        return any(typing.get_origin(part) is collections.abc.Callable for part in self.parts)

    def takes(self, value: object) -> bool:
        """Whether a value is of its type; `True` is no number, and `"5"` neither."""
        config = ConfigDict(strict=True, arbitrary_types_allowed=True)
        try:
            TypeAdapter(self.type, config=config).validate_python(value)
        except ValidationError:
            return False
        return True


@dataclass(frozen=True)
class Options:
    """All options of one class."""

    owner: str
    named: Mapping[str, Option]
    takes_any: bool
    """Whether it takes others, too (`**kwargs`)."""

    def refuse_unknown(self, section: str, given: Mapping[str, Any]) -> None:
        """Refuse an option that the class has not, and to leave out one that it needs.

        Raises:
            InvalidInputError: The first such option, with the nearest one.
        """
        for name, value in given.items():
            if name not in self.named and not self.takes_any:
                known = ", ".join(self.named) or "none"
                raise InvalidInputError(
                    f"{section}.{name} = {value!r}: {self.owner} has no such"
                    f" option{nearest(name, self.named)} (it has {known})"
                )
        for name, option in self.named.items():
            if option.is_required and name not in given:
                raise InvalidInputError(
                    f"{section}.{name} is missing: {self.owner} needs it ({option.wanted})"
                )

    def refuse_wrong(self, section: str, given: Mapping[str, Any]) -> None:
        """Refuse a value that is not of its option's type.

        Raises:
            InvalidInputError: The first such value, with the type that is wanted.
        """
        for name, value in given.items():
            option = self.named.get(name)
            if option is not None and not option.takes(value):
                raise InvalidInputError(
                    f"{section}.{name} = {value!r}: {self.owner} takes {option.wanted}"
                    f" here{_way_out(option)}"
                )


def _way_out(option: Option) -> str:
    if option.name == "constraints_func":
        return "; call trial.set_constraint in the objective instead"
    if option.is_function:
        return "; name a function as module:function, of a module that FLEET_SAMPLERS allows"
    return ""


def options_of(factory: type) -> Options:
    """The options of a class, by the signature of its constructor."""
    parameters = inspect.signature(factory).parameters
    types_of = _annotations(factory)
    named = {
        name: Option(
            name,
            wanted=_written(parameter),
            type=types_of.get(name, Any),
            is_required=parameter.default is parameter.empty,
        )
        for name, parameter in parameters.items()
        if parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
    }
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    return Options(factory.__name__, named, takes_any)


def _written(parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return "anything"
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _annotations(factory: type) -> dict[str, Any]:
    """The constructor's annotations as types; one that cannot be resolved takes anything."""
    constructor: Callable[..., Any] = factory.__init__  # type: ignore[misc]
    module = sys.modules.get(getattr(constructor, "__module__", None) or "")
    names = {**_NAMES, **({} if module is None else vars(module))}
    found: dict[str, Any] = {}
    for name, annotation in getattr(constructor, "__annotations__", {}).items():
        holder = types.SimpleNamespace(__annotations__={name: annotation})
        with suppress(Exception):  # annotations are code of their author's
            found |= typing.get_type_hints(holder, localns=names)
    return found
