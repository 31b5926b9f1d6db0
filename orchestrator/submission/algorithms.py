"""Samplers and pruners by name: all of the installed Optuna, and those of modules that are allowed.

What they take may be one of them again (`base_sampler`, `wrapped_pruner`), or another class of
Optuna's by its name (`crossover: sbx`).

Invariant: what is built here was named by a study, and its options are those of its signature.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import numpy as np
import optuna
from optuna import pruners, samplers
from optuna.samplers import nsgaii

from orchestrator.submission.algorithm_options import Option, Options, options_of
from orchestrator.submission.rust_sampler import RustSampler, rust_tpe
from orchestrator.submission.space import count_leaves, distributions, grid_points, stored_value
from workers.protocol.errors import InvalidInputError, nearest
from workers.protocol.halving import RungSchedule
from workers.protocol.plain import describe_error
from workers.protocol.spec import StudySpec
from workers.protocol.study_options import PrunerSpec

#: Packages that a class imports when it is first used, none of them Optuna's own need.
_PACKAGES: Final = {
    "CmaEsSampler": ("cmaes",),
    "QMCSampler": ("scipy",),
    "GPSampler": ("scipy", "torch"),
    "WilcoxonPruner": ("scipy",),
}

#: Samplers that go through a sequence that their seed makes, and so keep it over a restart.
_SEQUENCES: Final = (samplers.GridSampler, samplers.QMCSampler, samplers.BruteForceSampler)

_WORDS: Final = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@dataclass(frozen=True)
class Family:
    """Classes of one kind, by the names that a study has for them."""

    base: type
    classes: Mapping[str, type]
    suffix: str
    """How the names of such classes end; left out in a study, or not."""

    @classmethod
    def of(cls, base: type, module: ModuleType, suffix: str, **others: type) -> Family:
        """The public classes of a module that can be built."""
        found = {
            _WORDS.sub("_", name.removesuffix(suffix)).lower(): each
            for name in module.__all__
            if inspect.isclass(each := getattr(module, name))
            and issubclass(each, base)
            and not (inspect.isabstract(each) or name.startswith("Base"))
        }
        return cls(base, {**found, **others}, suffix)

    def find(self, name: str) -> type | None:
        """The class of a name, however its words are joined: `cma_es`, `cmaes`, `CmaEsSampler`."""
        wanted = self._folded(name)
        same = (each for known, each in self.classes.items() if self._folded(known) == wanted)
        return next(same, None)

    def _folded(self, name: str) -> str:
        return re.sub(r"[^a-z0-9]", "", name.lower()).removesuffix(self.suffix.lower())


SAMPLERS: Final = Family.of(samplers.BaseSampler, samplers, "Sampler")
PRUNERS: Final = Family.of(
    pruners.BasePruner,
    pruners,
    "Pruner",
    none=pruners.NopPruner,
    asha=pruners.SuccessiveHalvingPruner,
)
_FAMILIES: Final = (
    SAMPLERS,
    PRUNERS,
    Family.of(nsgaii.BaseCrossover, nsgaii, "Crossover"),
    Family.of(nsgaii.BaseMutation, nsgaii, "Mutation"),
)


def make_sampler(
    spec: StudySpec, *, num_existing: int = 0, allowed: Collection[str] = ()
) -> samplers.BaseSampler:
    """The study's sampler.

    Args:
        spec: Names it and its options.
        num_existing: Trials there are already: a resumed study must not draw the first ones again.
        allowed: Modules that samplers may be imported from, beside Optuna.

    Raises:
        InvalidInputError: No such sampler or option.
    """
    given = spec.sampler.model_dump(exclude_none=True, exclude={"engine"})
    builder = _Builder(spec, num_existing, allowed)
    if spec.sampler.engine is not None:
        return RustSampler(builder.build("sampler", _rust_family(spec), given, None))
    found = builder.build("sampler", SAMPLERS, given, None)
    sampler: samplers.BaseSampler = found
    return sampler


def _rust_family(spec: StudySpec) -> Family:
    if SAMPLERS.find(spec.sampler.type) is not samplers.TPESampler:
        raise InvalidInputError(
            f"sampler.engine = 'rust': it has tpe, and no {spec.sampler.type!r}; leave"
            " sampler.engine out for that of Optuna"
        )
    return Family(object, {"tpe": rust_tpe()}, SAMPLERS.suffix)


def make_pruner(spec: StudySpec, *, allowed: Collection[str] = ()) -> pruners.BasePruner:
    """The study's pruner.

    Args:
        spec: Names it and its options.
        allowed: Modules that pruners may be imported from, beside Optuna.

    Raises:
        InvalidInputError: No such pruner or option.
    """
    if spec.pruner.promote:  # by the orchestrator itself: nothing is asked of Optuna
        check_promotion(spec.pruner)
        return pruners.NopPruner()
    given = spec.pruner.model_dump(exclude={"promote"})
    found = _Builder(spec, 0, allowed).build("pruner", PRUNERS, given, None)
    pruner: pruners.BasePruner = found
    return pruner


def check_promotion(pruner: PrunerSpec) -> None:
    """Refuse a pruner that cannot promote.

    Raises:
        InvalidInputError: It is another one than successive halving, or its options are wrong.
    """
    if PRUNERS.find(pruner.type) is not pruners.SuccessiveHalvingPruner:
        raise InvalidInputError(
            f"pruner.type = {pruner.type!r}: only successive halving promotes; write asha, or leave"
            " pruner.promote out"
        )
    try:
        RungSchedule.of(pruner)
    except ValueError as error:
        raise InvalidInputError(f"pruner.{error}") from error


def num_points(spec: StudySpec) -> float:
    """How many trials exhaust the study's sampler; infinity if that shows only on the way."""
    found = SAMPLERS.find(spec.sampler.type)
    if found is samplers.GridSampler:
        given = (spec.sampler.model_extra or {}).get("search_space")
        return math.prod(len(points) for points in grid_points(spec, given).values())
    if found is samplers.BruteForceSampler:
        return count_leaves(spec)
    return math.inf


@dataclass(frozen=True)
class _Builder:
    """Builds what one study names."""

    spec: StudySpec
    num_existing: int
    allowed: Collection[str]

    def build(self, section: str, family: Family, given: Mapping[str, Any], seed: Any) -> Any:
        """One sampler, pruner, crossover or mutation.

        Args:
            section: Where the study names it, for messages.
            family: What it must be.
            given: `type`, and options.
            seed: What seeds it, unless it is given its own.

        Raises:
            InvalidInputError: There is no such one, or it does not take its options.
        """
        options = dict(given)
        seed = options.pop("seed", seed) if family.suffix == SAMPLERS.suffix else None
        factory = self._find(section, family, str(options.pop("type", "")))
        known = options_of(factory)
        if factory is samplers.GridSampler:
            options["search_space"] = grid_points(self.spec, options.get("search_space"))
        known.refuse_unknown(section, options)
        options = {
            name: self._value(f"{section}.{name}", known, name, value, seed)
            for name, value in options.items()
        }
        if seed is not None and "seed" in known.named:
            # a sequence that is drawn in its order must be the same one after a restart
            is_shifted = isinstance(seed, int) and not issubclass(factory, _SEQUENCES)
            options["seed"] = seed + self.num_existing if is_shifted else seed
        known.refuse_wrong(section, options)
        return _construct(section, factory, options)

    def _find(self, section: str, family: Family, name: str) -> type:
        if ":" in name:
            found = self._import(f"{section}.type", name)
            if not (inspect.isclass(found) and issubclass(found, family.base)):
                raise InvalidInputError(
                    f"{section}.type = {name!r}: it is no {family.base.__name__} of Optuna"
                )
            return found
        known = family.find(name)
        if known is None:
            raise InvalidInputError(
                f"{section}.type = {name!r}: no such"
                f" {section.rpartition('.')[2]}{nearest(name, family.classes)}"
                f" (there are {', '.join(family.classes)}, and module:Class)"
            )
        return known

    def _value(self, section: str, known: Options, name: str, value: Any, seed: Any) -> Any:
        """What a study gives for one option, as the class takes it."""
        option = known.named.get(name)
        if option is None or value is None:
            return value
        family = _family_of(option)
        if family is not None and isinstance(value, (str, Mapping)):
            given = {"type": value} if isinstance(value, str) else value
            return self.build(section, family, given, seed)
        if option.is_function and isinstance(value, str) and ":" in value:
            return self._import(section, value)
        if np.ndarray in option.parts and isinstance(value, list):
            return _array(section, value)
        if dict[str, Any] in option.parts and isinstance(value, Mapping):
            return self._params(section, value)
        return value

    def _params(self, section: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters of the study with a value each, as its storage has them."""
        known = distributions(self.spec)
        stored = {}
        for name, value in given.items():
            if known and name not in known:
                raise InvalidInputError(
                    f"{section}.{name}: no such parameter in `space`{nearest(name, known)}"
                )
            stored[name] = stored_value(self.spec, f"{section}.{name}", name, value)
        return stored

    def _import(self, section: str, reference: str) -> Any:
        """What a module that is allowed has under a name."""
        module, _, name = reference.rpartition(":")
        if not any(each in {"*", module} or module.startswith(f"{each}.") for each in self.allowed):
            raise InvalidInputError(
                f"{section} = {reference!r}: samplers and pruners are imported only from"
                f" {', '.join(self.allowed) or 'Optuna itself'}; start the orchestrator, and hand"
                f" the study in, with FLEET_SAMPLERS={module}"
            )
        try:
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        except (Exception, SystemExit) as error:
            raise InvalidInputError(
                f"{section} = {reference!r} does not import: {describe_error(error, 300)}"
            ) from error
        return found


def _family_of(option: Option) -> Family | None:
    classes = [part for part in option.parts if inspect.isclass(part)]
    return next(
        (each for each in _FAMILIES if any(issubclass(part, each.base) for part in classes)), None
    )


def _array(section: str, value: list[Any]) -> Any:
    try:
        return np.asarray(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{section} = {value!r}: give rows of numbers ({error})") from error


def _construct(section: str, factory: type, options: Mapping[str, Any]) -> Any:
    for package in _PACKAGES.get(factory.__name__, ()):
        if importlib.util.find_spec(package) is None:  # found, and not imported: torch takes long
            raise InvalidInputError(
                f"{section}: {factory.__name__} needs the package {package}, which the orchestrator"
                f" does not have; `pip install {package}`, or `pip install 'trialfleet[samplers]'`"
            )
    try:
        with warnings.catch_warnings():  # it was asked for by its name
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.simplefilter("ignore", FutureWarning)
            return factory(**options)
    except Exception as error:
        first = describe_error(error, 300).splitlines()[0]
        raise InvalidInputError(
            f"{section}: {factory.__name__} refuses {dict(options)}: {first}"
        ) from error
