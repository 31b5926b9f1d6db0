"""Categorical choices as names that JSON and Optuna's storages hold, and back.

A choice that is text, a finite number, a boolean or None is its own name, unless Optuna would take
it for another one (`True` for `1`). Of all others (tuples, lists, mappings, arrays, infinity) the
name is their JSON, so that best parameters, journals and dashboards stay readable. The same choices
have the same names in every process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

from workers.protocol.errors import UnsuitableValueError
from workers.protocol.plain import as_plain, is_array, type_name

Name: TypeAlias = bool | int | float | str | None


@dataclass(frozen=True)
class Choices:
    """The choices of one parameter, in their order, with the name of each."""

    values: tuple[Any, ...]
    names: tuple[Name, ...]

    @classmethod
    def of(cls, values: Sequence[Any], parameter: str) -> Choices:
        """Name choices.

        Raises:
            UnsuitableValueError: One of them has no form in JSON, such as a class or an Enum.
        """
        values = tuple(values)
        if not values:
            raise UnsuitableValueError(f"{parameter}: there are no choices; give one or more")
        plain = [_plain(value, f"{parameter}: choice {value!r:.80}") for value in values]
        names: list[Name] = []
        for index, item in enumerate(plain):
            if _is_own_name(item, plain):
                names.append(item)
            else:
                names.append(_unlike(json.dumps(item), [*names, *plain[index + 1 :]]))
        return cls(values, tuple(names))

    def name_of(self, value: Any) -> Name:
        """The name of a choice.

        Raises:
            ValueError: It is none.
        """
        for known, name in zip(self.values, self.names, strict=True):
            if _same(known, value):
                return name
        raise ValueError(f"{value!r} is none of {list(self.values)}")

    def value_of(self, name: Any) -> Any:
        """The choice of a name, as it was given.

        Raises:
            ValueError: There is none.
        """
        for known, value in zip(self.names, self.values, strict=True):
            if _same(known, name):
                return value
        # of a study whose space named the choices itself
        for value in self.values:
            if not isinstance(value, (list, tuple, Mapping)) and _same(value, name):
                return value
        raise ValueError(f"{name!r} is none of {list(self.names)}")


def _plain(value: Any, what: str) -> Any:
    if isinstance(value, Enum) or not _is_choice(value):
        raise UnsuitableValueError(
            f"{what}: {type_name(value)}: choices are text, numbers, booleans, None, and lists,"
            " tuples and mappings of them; choose among names, and look the rest up by name"
        )
    return as_plain(value, what)


def _is_choice(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_choice(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_choice, value))
    return value is None or isinstance(value, (bool, int, float, str)) or is_array(value)


def _is_own_name(item: Any, all_items: Sequence[Any]) -> bool:
    """Whether a choice can stand for itself: JSON holds it, and Optuna takes it for no other."""
    if isinstance(item, (list, dict)) or (isinstance(item, float) and not math.isfinite(item)):
        return False
    return all(type(item) is type(other) for other in all_items if _equal(item, other))


def _unlike(name: str, taken: Sequence[Any]) -> str:
    """A name that no other choice has."""
    number, found = 1, name
    while found in taken:
        number += 1
        found = f"{name} ({number})"
    return found


def _equal(one: Any, other: Any) -> bool:
    """Whether Optuna takes one for the other: `1 == True`, and NaN is NaN."""
    return bool(one == other) or (one != one and other != other)  # noqa: PLR0124 - NaN


def _same(one: Any, other: Any) -> bool:
    """Whether both are one thing in JSON: `1` is not `true`."""
    return _equal(one, other) and isinstance(one, bool) == isinstance(other, bool)
