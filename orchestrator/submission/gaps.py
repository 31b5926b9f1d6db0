"""What trials would lack in a wider space, where the sampler takes no trial that lacks something.

Brute force makes one tree of all trials, by the parameters that each asked for in their order: it
asks for nothing more once two trials with the same values before asked for different ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from workers.protocol.errors import InvalidInputError
from workers.protocol.parameters import CategoricalDimension, Dimension
from workers.protocol.spec import StudySpec
from workers.protocol.wider_space import can_be


def refuse_gaps(before: StudySpec, after: StudySpec) -> None:
    """Refuse a wider space in which trials would lack a parameter, or have a value beside the grid.

    Raises:
        InvalidInputError: The message names the parameter and the way out.
    """
    for name, dimension in after.space.items():
        if not _may_lack(name, before, after):
            continue
        if dimension.default is None:
            raise InvalidInputError(
                f"space.{name}: brute force goes through a tree of all trials, and those before may"
                f" lack {name}; say what they had in its place (`default: VALUE` in space.{name}),"
                " or hand in another study"
            )
        if not _is_reached(dimension):
            raise InvalidInputError(
                f"space.{name}.default = {dimension.default!r} lies between the values that brute"
                " force goes through; give one of them, or hand in another study"
            )


def _may_lack(name: str, before: StudySpec, after: StudySpec) -> bool:
    """Whether a trial of the narrower space may lack what it would have in the wider one."""
    now = after.space[name].when
    if not all(_could_be(other, allowed, before, after) for other, allowed in now.items()):
        return False
    if name not in before.space:
        return True
    return any(
        other not in now
        or _could_be(other, [each for each in now[other] if each not in allowed], before, after)
        for other, allowed in before.space[name].when.items()
    )


def _could_be(name: str, values: Iterable[object], before: StudySpec, after: StudySpec) -> bool:
    """Whether a trial of the narrower space may have one of some values, or have had it."""
    narrower, default = before.space.get(name), after.space[name].default
    return any(
        (default is not None and value == default)
        or (narrower is not None and can_be(narrower, value))
        for value in values
    )


def _is_reached(dimension: Dimension) -> bool:
    """Whether a parameter's default is one of its steps."""
    if isinstance(dimension, CategoricalDimension) or dimension.step is None:
        return True
    low, default = Decimal(str(dimension.low)), Decimal(str(dimension.default))
    return (default - low) % Decimal(str(dimension.step)) == 0
