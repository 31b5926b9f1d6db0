"""The search space: from the study's dimensions to Optuna's distributions, sampler and pruner."""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final

import optuna
from optuna import pruners, samplers
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from workers.protocol.choices import Choices
from workers.protocol.errors import InvalidInputError, nearest
from workers.protocol.spec import (
    CategoricalDimension,
    Dimension,
    FloatDimension,
    IntDimension,
    StudySpec,
)

#: Samplers by short name, with the class in `optuna.samplers`.
SAMPLERS: Final = {
    "tpe": "TPESampler",
    "random": "RandomSampler",
    "cmaes": "CmaEsSampler",
    "gp": "GPSampler",
    "nsgaii": "NSGAIISampler",
    "nsgaiii": "NSGAIIISampler",
    "qmc": "QMCSampler",
    "grid": "GridSampler",
    "bruteforce": "BruteForceSampler",
}

#: Samplers that go through a sequence that their seed makes, and so keep it.
_SEQUENCES: Final = frozenset({"grid", "qmc", "bruteforce"})

#: Packages that a sampler imports when it is first used, none of them Optuna's own need.
_PACKAGES: Final = {"cmaes": ("cmaes",), "qmc": ("scipy",), "gp": ("scipy", "torch")}

#: Pruners by short name, with the class in `optuna.pruners`.
PRUNERS: Final = {
    "none": "NopPruner",
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "hyperband": "HyperbandPruner",
    "successive_halving": "SuccessiveHalvingPruner",
    "threshold": "ThresholdPruner",
}

#: How many points of a grid one dimension may have.
_MAX_GRID: Final = 10_000


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
        if all(values.get(other) in allowed for other, allowed in dimension.when.items()):
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


def make_sampler(spec: StudySpec, *, num_existing: int = 0) -> samplers.BaseSampler:
    """The study's sampler.

    Args:
        spec: Names it and its options.
        num_existing: Trials there are already: a resumed study must not draw the first ones again.

    Raises:
        InvalidInputError: No such sampler or option.
    """
    options = dict(spec.sampler.model_extra or {})
    class_name = _find("sampler.type", spec.sampler.type, SAMPLERS)
    _check_packages(spec.sampler.type)
    seed = spec.sampler.seed
    if seed is not None:
        # a sequence that is drawn in its order must be the same one after a restart
        options["seed"] = seed if spec.sampler.type in _SEQUENCES else seed + num_existing
    if spec.sampler.type == "grid":
        options["search_space"] = _grid(spec)
    sampler: samplers.BaseSampler = _build("sampler", getattr(samplers, class_name), options)
    return sampler


def make_pruner(spec: StudySpec) -> pruners.BasePruner:
    """The study's pruner.

    Raises:
        InvalidInputError: No such pruner or option.
    """
    class_name = _find("pruner.type", spec.pruner.type, PRUNERS)
    options = dict(spec.pruner.model_extra or {})
    pruner: pruners.BasePruner = _build("pruner", getattr(pruners, class_name), options)
    return pruner


def num_points(spec: StudySpec) -> float:
    """How many trials exhaust the study's sampler; infinity if that shows only on the way."""
    if spec.sampler.type != "grid":
        return math.inf
    return math.prod(len(points) for points in _grid(spec).values())


def _check_packages(sampler: str) -> None:
    for package in _PACKAGES.get(sampler, ()):
        if importlib.util.find_spec(package) is None:  # found, and not imported: torch takes long
            raise InvalidInputError(
                f"sampler.type = {sampler!r} needs the package {package}, which the orchestrator"
                f" does not have; `pip install {package}`, or `pip install 'trialfleet[samplers]'`"
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
        if not math.isfinite(value):
            raise InvalidInputError(f"space.{name}.{bound} = {value}: give a finite number")
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
            if not _can_be(space[other], value):
                raise InvalidInputError(
                    f"space.{name}.when.{other} = {value!r}, which {other} can never be"
                )


def _can_be(dimension: Dimension, value: Any) -> bool:
    if isinstance(dimension, CategoricalDimension):
        return value in dimension.choices
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and dimension.low <= value <= dimension.high


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


def _find(field: str, name: str, known: Mapping[str, str]) -> str:
    if name not in known:
        raise InvalidInputError(
            f"{field} = {name!r}: no such {field.partition('.')[0]}{nearest(name, known)}"
            f" (there are {', '.join(known)})"
        )
    return known[name]


def _build(section: str, factory: Any, options: dict[str, Any]) -> Any:
    known = [name for name in inspect.signature(factory.__init__).parameters if name != "self"]
    if "seed" in options and "seed" not in known:
        del options["seed"]
    for option, value in options.items():
        if option not in known:
            raise InvalidInputError(
                f"{section}.{option} = {value!r}: {factory.__name__} has no such"
                f" option{nearest(option, known)} (it has {', '.join(known)})"
            )
    try:
        return factory(**options)
    except (TypeError, ValueError, ImportError, ModuleNotFoundError) as error:
        first = str(error).splitlines()[0]
        raise InvalidInputError(
            f"{section}: {factory.__name__} refuses {options}: {first}"
        ) from error


def _grid(spec: StudySpec) -> dict[str, list[Any]]:
    if not spec.space:
        raise InvalidInputError(
            "sampler.type = 'grid' goes through the points of `space`, and the study has none;"
            " give it one, or use another sampler"
        )
    return {name: _points(name, dimension) for name, dimension in spec.space.items()}


def _points(name: str, dimension: Dimension) -> list[Any]:
    if isinstance(dimension, CategoricalDimension):
        return list(Choices.of(dimension.choices, name).names)
    step = dimension.step
    if step is None or dimension.log:
        raise InvalidInputError(
            f"space.{name}: the grid sampler needs points; give `step`, or `choices`"
        )
    count = math.floor((dimension.high - dimension.low) / step + 1e-9) + 1
    if count > _MAX_GRID:
        raise InvalidInputError(f"space.{name}: {count} points are too many for a grid")
    return [dimension.low + index * step for index in range(count)]
