"""Whether one search space is wider than another, so that a study may go on in it.

Invariant: every trial that could be in the space before could be in the wider one, with the same
values; what an old trial lacks there is a parameter that is new, or a condition's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from workers.protocol.choices import Choices
from workers.protocol.errors import InvalidInputError
from workers.protocol.parameters import (
    CategoricalDimension,
    Dimension,
    FloatDimension,
    IntDimension,
)
from workers.protocol.spec import StudySpec

#: How far from a step a bound may lie for the rounding of numbers, in steps.
_ROUNDING = 1e-9


def refuse_narrower(before: Mapping[str, Dimension], after: Mapping[str, Dimension]) -> None:
    """Refuse a space in which trials of another one could not have been.

    Raises:
        InvalidInputError: The message names the parameter, what is less of it, and the way out.
    """
    for name, dimension in before.items():
        if name not in after:
            _refuse(name, "is left out", "its trials have it; name it as it is")
        _refuse_narrower_dimension(name, dimension, after[name])
        _refuse_narrower_conditions(name, dimension, after[name])


def is_same_space(one: Mapping[str, Dimension], other: Mapping[str, Dimension]) -> bool:
    """Whether two spaces hold the same; a `default` says nothing of that."""
    return _without_defaults(one) == _without_defaults(other)


def is_wider(before: Mapping[str, Dimension], after: Mapping[str, Dimension]) -> bool:
    """Whether a study may go on in another space."""
    try:
        refuse_narrower(before, after)
    except InvalidInputError:
        return False
    return True


def in_order_of(
    known: Mapping[str, Dimension], space: Mapping[str, Dimension]
) -> dict[str, Dimension]:
    """A space with its parameters in the order in which trials have been asking for them.

    Brute force, and what a seed draws, go by that order. New parameters leave it as it is written.
    """
    return {name: space[name] for name in (known if known.keys() == space.keys() else space)}


def is_same_in_wider_space(before: StudySpec, after: StudySpec) -> bool:
    """Whether a study is another one in all but that its space is wider."""
    if not before.space or is_same_space(before.space, after.space):
        return False
    as_before = after.model_copy(update={"space": before.space})
    return _identity(as_before) == _identity(before) and is_wider(before.space, after.space)


def refuse_wrong_default(name: str, dimension: Dimension) -> None:
    """Refuse a `default` that the parameter can never be.

    Raises:
        InvalidInputError: Likewise.
    """
    value = dimension.default
    if value is not None and not can_be(dimension, value):
        raise InvalidInputError(f"space.{name}.default = {value!r}, which {name} can never be")


def _identity(spec: StudySpec) -> str:
    return json.dumps(spec.identity(), sort_keys=True)  # as text: NaN is unlike itself


def _without_defaults(space: Mapping[str, Dimension]) -> dict[str, Dimension]:
    return {name: each.model_copy(update={"default": None}) for name, each in space.items()}


def can_be(dimension: Dimension, value: Any) -> bool:
    """Whether a parameter can have a value, whatever its step is."""
    if isinstance(dimension, CategoricalDimension):
        return value in dimension.choices
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return dimension.low <= value <= dimension.high


def _refuse_narrower_dimension(name: str, before: Dimension, after: Dimension) -> None:
    if isinstance(before, CategoricalDimension) and isinstance(after, CategoricalDimension):
        known = Choices.of(after.choices, f"space.{name}")
        for choice in before.choices:
            try:
                known.name_of(choice)
            except ValueError:
                _refuse(f"{name}.choices", f"lacks {choice!r}", "add to the choices, and keep all")
    elif (isinstance(before, FloatDimension) and isinstance(after, FloatDimension)) or (
        isinstance(before, IntDimension) and isinstance(after, IntDimension)
    ):
        _refuse_narrower_range(name, before, after)
    else:
        _refuse(f"{name}.type", f"is {after.type}, and was {before.type}", "leave it as it was")


def _refuse_narrower_range(
    name: str, before: FloatDimension | IntDimension, after: FloatDimension | IntDimension
) -> None:
    for field in ("log", "step"):
        was, now = getattr(before, field), getattr(after, field)
        if was != now:
            _refuse(f"{name}.{field}", f"is {now}, and was {was}", "leave it as it was")
    if not after.low <= before.low:
        _refuse(f"{name}.low", f"= {after.low} is above {before.low}", "only lower it")
    if not after.high >= before.high:
        _refuse(f"{name}.high", f"= {after.high} is below {before.high}", "only raise it")
    if before.step is not None and math.isfinite(after.low):
        steps = (before.low - after.low) / before.step
        if abs(steps - round(steps)) > _ROUNDING * max(1.0, abs(steps)):
            _refuse(
                f"{name}.low",
                f"= {after.low} lies no whole steps of {before.step} below {before.low}",
                "the values that there were would lie between the new ones",
            )


def _refuse_narrower_conditions(name: str, before: Dimension, after: Dimension) -> None:
    for other, allowed in after.when.items():
        if other not in before.when:
            _refuse(f"{name}.when.{other}", "is new", "trials have the parameter without it")
        gone = [value for value in before.when[other] if value not in allowed]
        if gone:
            _refuse(f"{name}.when.{other}", f"lacks {gone[0]!r}", "add to it, and keep all")


def _refuse(what: str, problem: str, advice: str) -> NoReturn:
    raise InvalidInputError(
        f"space.{what} {problem}: {advice}. A study's space can only become wider, since its trials"
        " stay in it; for another space hand in another study, with `from` to learn from this one"
    )
