"""The search space: from the study's dimensions to Optuna's distributions, and its points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from workers.protocol.choices import Choices
from workers.protocol.errors import InvalidInputError, nearest
from workers.protocol.parameters import (
    CategoricalDimension,
    Dimension,
    FloatDimension,
    IntDimension,
)
from workers.protocol.plain import is_finite
from workers.protocol.spec import StudySpec
from workers.protocol.wider_space import can_be, refuse_wrong_default

#: How many points of a grid one dimension may have.
_MAX_GRID: Final = 10_000

#: How many steps of a dimension a float can count.
_MAX_STEPS: Final = 2.0**53


def check_space(spec: StudySpec) -> None:
    """Refuse a space that nothing can be suggested from.

    Raises:
        InvalidInputError: The message names the parameter, the value and the way out.
    """
    for name, dimension in spec.space.items():
        if isinstance(dimension, CategoricalDimension):
            _check_choices(name, dimension)
        else:
            _check_range(name, dimension)
        _check_conditions(name, dimension, spec.space)
        refuse_wrong_default(name, dimension)
        _check_path(name, spec)
    suggestion_order(spec)


def suggestion_order(spec: StudySpec) -> list[str]:
    """The parameters, each after those that its `when` asks about; else as written.

    Raises:
        InvalidInputError: The conditions go in a circle.
    """
    sorter = TopologicalSorter({name: list(each.when) for name, each in spec.space.items()})
    try:
        sorter.prepare()
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise InvalidInputError(
            f"space: the `when` conditions go in a circle: {circle}; drop one of them"
        ) from error
    order: list[str] = []
    while sorter.is_active():
        ready = set(sorter.get_ready())
        order += [name for name in spec.space if name in ready]
        sorter.done(*ready)
    return order


def distributions(spec: StudySpec) -> dict[str, BaseDistribution]:
    """Every parameter's distribution in Optuna's terms."""
    return {name: _distribution(dimension) for name, dimension in spec.space.items()}


def suggest_all(trial: optuna.Trial, spec: StudySpec) -> dict[str, Any]:
    """Suggest all parameters of a trial whose conditions hold."""
    values: dict[str, Any] = {}
    for name in suggestion_order(spec):
        dimension = spec.space[name]
        if exists(dimension, values):
            stored = suggest(trial, name, _distribution(dimension))
            values[name] = _value_of(dimension, name, stored)
    return values


def values_of(spec: StudySpec, stored: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's parameters as its objective is to see them, from those in the storage."""
    return {
        name: _value_of(spec.space[name], name, value) if name in spec.space else value
        for name, value in stored.items()
    }


def suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    """One parameter of a trial.

    Raises:
        ValueError: The trial has a value that does not suit the distribution.
    """
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, FloatDistribution):
        bounds = (distribution.low, distribution.high)
        return trial.suggest_float(name, *bounds, step=distribution.step, log=distribution.log)
    if isinstance(distribution, IntDistribution):
        low, high = distribution.low, distribution.high
        return trial.suggest_int(name, low, high, step=distribution.step, log=distribution.log)
    raise ValueError(f"nothing can be suggested from {type(distribution).__name__}")


def stored_value(spec: StudySpec, field: str, name: str, value: Any) -> Any:
    """A value that a study names for a parameter, as the storage has it.

    Raises:
        InvalidInputError: The parameter cannot have it.
    """
    dimension = spec.space.get(name)
    if dimension is None:
        return value
    try:
        if isinstance(dimension, CategoricalDimension):
            return Choices.of(dimension.choices, name).name_of(value)
    except ValueError as error:
        raise InvalidInputError(f"{field} = {value!r}: {error}") from error
    if not can_be(dimension, value):
        raise InvalidInputError(f"{field} = {value!r}, which {name} can never be")
    return value


def grid_points(
    spec: StudySpec, given: Mapping[str, Sequence[Any]] | None = None
) -> dict[str, list[Any]]:
    """The points of a grid, by parameter.

    Args:
        spec: The study.
        given: Points that it names itself, in place of those of its `space`.

    Raises:
        InvalidInputError: There are none, too many, or some that a parameter cannot have.
    """
    named = _named_points(spec, given or {})
    if not (spec.space or named):
        raise InvalidInputError(
            "sampler.type = 'grid' goes through the points of `space`, and the study has none;"
            " give it one, name points as `search_space`, or use another sampler"
        )
    own = {
        name: _points(name, dimension)
        for name, dimension in spec.space.items()
        if name not in named
    }
    return {**own, **named}


def count_leaves(spec: StudySpec) -> float:
    """How many trials of a space there are that differ; infinity if they cannot be counted."""
    if not spec.space:
        return math.inf
    asked = {other for dimension in spec.space.values() for other in dimension.when}
    if any(not _num_values(dimension) < math.inf for dimension in spec.space.values()):
        return math.inf
    rows: list[dict[str, Any]] = [{}]
    free = []
    for name in suggestion_order(spec):
        dimension = spec.space[name]
        if name not in asked:
            free.append(name)
            continue
        if len(rows) * _num_values(dimension) > _MAX_GRID:
            return math.inf
        rows = [
            {**row, name: value}
            for row in rows
            for value in (_all_values(dimension) if exists(dimension, row) else [None])
        ]
    return sum(
        math.prod(_num_values(spec.space[name]) for name in free if exists(spec.space[name], row))
        for row in rows
    )


def _check_choices(name: str, dimension: CategoricalDimension) -> None:
    seen: list[Any] = []
    for choice in dimension.choices:
        if any(choice == other and type(choice) is type(other) for other in seen):
            raise InvalidInputError(
                f"space.{name}.choices holds {choice!r} twice; name each choice once"
            )
        seen.append(choice)


def _check_range(name: str, dimension: FloatDimension | IntDimension) -> None:
    for bound in ("low", "high"):
        value = getattr(dimension, bound)
        if not is_finite(value):
            raise InvalidInputError(
                f"space.{name}.{bound} = {str(value)[:60]}: give a finite number"
            )
    if dimension.low > dimension.high:
        raise InvalidInputError(
            f"space.{name}: low = {dimension.low} is above high = {dimension.high}; swap them"
        )
    if dimension.log and dimension.low <= 0:
        raise InvalidInputError(
            f"space.{name}: log needs low > 0, and low = {dimension.low}; raise it or drop `log`"
        )
    has_step = dimension.step not in {None, 1} or isinstance(dimension.step, float)
    if dimension.log and has_step:
        raise InvalidInputError(
            f"space.{name}: log and step = {dimension.step} exclude one another; drop one"
        )
    _check_width(name, dimension)


def _check_width(name: str, dimension: FloatDimension | IntDimension) -> None:
    """Refuse what samplers cannot count in: they would be blamed for it, or fail trial by trial."""
    width = float(dimension.high) - float(dimension.low)
    if math.isinf(width):
        raise InvalidInputError(
            f"space.{name}: from {dimension.low} to {dimension.high} is further than a float can"
            " tell; bring them closer, or use `log`"
        )
    if isinstance(dimension.step, float) and width / dimension.step > _MAX_STEPS:
        raise InvalidInputError(
            f"space.{name}.step = {dimension.step}: these are more steps than a float can count;"
            " raise it, or leave it out"
        )


def _check_path(name: str, spec: StudySpec) -> None:
    """Refuse a parameter and one below it, and one below what is no group of settings."""
    parts = name.split(".")
    node: Any = spec.config
    for count in range(1, len(parts)):
        above = ".".join(parts[:count])
        if above in spec.space:
            raise InvalidInputError(
                f"space.{name} lies below space.{above}, which is a parameter itself; name one of"
                " them otherwise"
            )
        node = node.get(parts[count - 1], {}) if isinstance(node, Mapping) else node
        if not isinstance(node, Mapping):
            raise InvalidInputError(
                f"space.{name}: config.{above} = {node!r} is no group of settings; drop one of them"
            )


def _check_conditions(name: str, dimension: Dimension, space: Mapping[str, Dimension]) -> None:
    for other, allowed in dimension.when.items():
        if other not in space:
            raise InvalidInputError(
                f"space.{name}.when.{other}: no such parameter{nearest(other, space)}"
            )
        for value in allowed:
            if not can_be(space[other], value):
                raise InvalidInputError(
                    f"space.{name}.when.{other} = {value!r}, which {other} can never be"
                )


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, FloatDimension):
        return FloatDistribution(dimension.low, dimension.high, dimension.log, dimension.step)
    if isinstance(dimension, IntDimension):
        return IntDistribution(dimension.low, dimension.high, dimension.log, dimension.step)
    return CategoricalDistribution(Choices.of(dimension.choices, "space").names)


def _value_of(dimension: Dimension, name: str, stored: Any) -> Any:
    """What stands for a stored value in the study: of a choice, the choice."""
    if isinstance(dimension, CategoricalDimension):
        return Choices.of(dimension.choices, name).value_of(stored)
    return stored


def exists(dimension: Dimension, values: Mapping[str, Any]) -> bool:
    """Whether a trial has a parameter, by those that it has before."""
    return all(values.get(other) in allowed for other, allowed in dimension.when.items())


def _num_values(dimension: Dimension) -> float:
    """How many values a parameter can have."""
    if isinstance(dimension, CategoricalDimension):
        return len(dimension.choices)
    if dimension.step is None:
        return math.inf if dimension.low < dimension.high else 1
    return math.floor((dimension.high - dimension.low) / dimension.step + 1e-9) + 1


def _all_values(dimension: Dimension) -> list[Any]:
    if isinstance(dimension, CategoricalDimension):
        return list(dimension.choices)
    step = dimension.step or 0
    # rounding must take none of them past the bound
    return [
        min(dimension.low + index * step, dimension.high)
        for index in range(int(_num_values(dimension)))
    ]


def _named_points(spec: StudySpec, given: object) -> dict[str, list[Any]]:
    """The points that a study names itself."""
    if not isinstance(given, Mapping):
        raise InvalidInputError(
            f"sampler.search_space = {given!r}: give a list of points for each parameter"
        )
    for name, points in given.items():
        if spec.space and name not in spec.space:
            raise InvalidInputError(
                f"sampler.search_space.{name}: no such parameter in"
                f" `space`{nearest(name, spec.space)}"
            )
        if not isinstance(points, list) or not points:
            raise InvalidInputError(
                f"sampler.search_space.{name} = {points!r}: give a list of points"
            )
    return {
        name: [stored_value(spec, f"sampler.search_space.{name}", name, each) for each in points]
        for name, points in given.items()
    }


def _points(name: str, dimension: Dimension) -> list[Any]:
    if isinstance(dimension, CategoricalDimension):
        return list(Choices.of(dimension.choices, name).names)
    if dimension.step is None or dimension.log:
        raise InvalidInputError(
            f"space.{name}: the grid sampler needs points; give `step`, or `choices`, or name them"
            f" as `sampler.search_space.{name}`"
        )
    count = _num_values(dimension)
    if count > _MAX_GRID:
        raise InvalidInputError(f"space.{name}: {count} points are too many for a grid")
    return _all_values(dimension)
