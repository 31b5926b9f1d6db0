"""Parameters that people give: held against a study's space, named as its storage names them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from workers.protocol.choices import Choices
from workers.protocol.errors import InvalidInputError, UnsuitableValueError, nearest
from workers.protocol.parameters import CategoricalDimension, FloatDimension, IntDimension
from workers.protocol.plain import Plain, as_key, as_plain, is_finite, shown
from workers.protocol.spec import StudySpec


def stored_params(spec: StudySpec, given: Mapping[str, Any]) -> dict[str, Any]:
    """Given parameters as the storage is to hold them.

    A study without a `space` takes what its objective will ask for, and that alone can tell.

    Raises:
        InvalidInputError: One is not of the space; the message names it, its value and the way out.
    """
    if not isinstance(given, Mapping):
        raise InvalidInputError(
            f"{shown(given)} is no mapping: give the parameters of each trial as one of names to"
            " values, such as enqueue({'x': 1}, {'x': 2})"
        )
    plain = dict(_plain(*each) for each in given.items())
    if not spec.space:
        return {name: _stored_without_space(name, value) for name, value in plain.items()}
    found = {}
    for name, value in plain.items():
        if name not in spec.space:
            raise InvalidInputError(
                f"parameter {name!r}: the space of study {spec.name!r} has no such"
                f" parameter{nearest(name, spec.space)} (it has {', '.join(spec.space)})"
            )
        found[name] = _stored(spec, name, value)
    for name in found:
        _check_conditions(spec, name, plain)
    return found


def given_params(spec: StudySpec, stored: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's parameters as people would give them, from those in its storage."""
    return {
        name: Choices.of(dimension.choices, name).value_of(value)
        if isinstance(dimension := spec.space.get(name), CategoricalDimension)
        else value
        for name, value in stored.items()
    }


def _plain(name: Any, value: Any) -> tuple[str, Plain]:
    try:
        return as_key(name), as_plain(value, f"parameter {name!r}")
    except UnsuitableValueError as error:
        raise InvalidInputError(str(error)) from error


def _stored_without_space(name: str, value: Plain) -> Plain:
    """A value that an objective's parameter may have.

    Of a choice that is a list, a mapping or not finite, the storage has the name, which is text: of
    the value itself it would find none.
    """
    if isinstance(value, (list, dict)) or (
        isinstance(value, (int, float)) and not is_finite(value)
    ):
        raise InvalidInputError(
            f"parameter {name!r} = {shown(value)}: give text, a finite number, true, false or null;"
            " of an objective that chooses among others, the choice as text, as `trialfleet export`"
            f" has it: {shown(json.dumps(value))}"
        )
    return value


def _stored(spec: StudySpec, name: str, value: Any) -> Any:
    dimension = spec.space[name]
    if isinstance(dimension, CategoricalDimension):
        choices = Choices.of(dimension.choices, name)
        for index, choice in enumerate(choices.values):
            if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                return choices.names[index]
        raise _refusal(spec, name, value, f"is none of {dimension.choices}")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not is_finite(value):
        raise _refusal(spec, name, value, "is no finite number")
    if not dimension.low <= value <= dimension.high:
        raise _refusal(spec, name, value, f"is not within {dimension.low} and {dimension.high}")
    if not _is_on_step(dimension, value):
        step = f"{dimension.low} and steps of {dimension.step}"
        raise _refusal(spec, name, value, f"is not reached from {step}")
    return int(value) if isinstance(dimension, IntDimension) else float(value)


def _is_on_step(dimension: FloatDimension | IntDimension, value: float) -> bool:
    if dimension.step is None or (isinstance(dimension, IntDimension) and dimension.log):
        return isinstance(dimension, FloatDimension) or value == int(value)
    steps = (value - dimension.low) / dimension.step
    return abs(steps - round(steps)) < 1e-8  # as Optuna has it


def _check_conditions(spec: StudySpec, name: str, given: Mapping[str, Any]) -> None:
    for other, allowed in spec.space[name].when.items():
        if other in given and given[other] not in allowed:
            raise InvalidInputError(
                f"parameter {name!r} = {given[name]!r}: study {spec.name!r} has it only when"
                f" {other} is {' or '.join(map(repr, allowed))}, and {other} = {given[other]!r} is"
                " given; leave it out"
            )


def _refusal(spec: StudySpec, name: str, value: Any, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"parameter {name!r} = {shown(value)}: it {why}, in the space of study {spec.name!r}; give"
        " another value, or leave it to the sampler"
    )
