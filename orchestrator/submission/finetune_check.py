"""What can be known to be wrong with a study of the built-in objective, its data files included."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from orchestrator.submission.read_files import ReadFiles
from workers.protocol.errors import InvalidInputError, nearest
from workers.protocol.finetune import BUILT_IN_SOURCES, DataConfig, FinetuneConfig
from workers.protocol.learning_rates import find_rate_problem
from workers.protocol.parameters import CategoricalDimension, Dimension, merge_params
from workers.protocol.spec import FINETUNE, StudySpec
from workers.protocol.tasks import DEFAULT_TASK, TASKS
from workers.texts.held_out import HeldOut
from workers.texts.rows import check_built_in


def check_finetune(spec: StudySpec, home: Path | None = None) -> list[str]:
    """Refuse settings of the built-in objective that could not be trained.

    Returns:
        What people should know of the data, a line each.

    Args:
        spec: The study.
        home: Where it is kept which data files were read and found good; None keeps nothing.

    Raises:
        InvalidInputError: The message names the field, or the file and its row, and the way out.
    """
    if "task" in spec.space:
        raise InvalidInputError("space.task: a study has one task; give it in config")
    for name in spec.space:
        _check_setting(f"space.{name}", name.split("."), FinetuneConfig)
    config = _validated(spec.config, "config")
    doubts = _check_metrics(spec, config)
    for corner, params in _corners(spec.space):
        _validated(merge_params(spec.config, params), corner)
    _check_rates(spec)
    read = ReadFiles(home)
    variants = list(_data_variants(spec, config))
    for data in variants:
        if data.source in BUILT_IN_SOURCES:
            check_built_in(data, "config.data.source")
    found = [read.check(data) for data in variants]
    for data, checked in zip(variants, found, strict=True):
        _check_measurable(spec.metrics, data, checked.held_out)
        _check_weighed(config, checked.classes)
    # of no labels, a row is not one example; of data that vary otherwise, not all are read
    if TASKS[config.task].labels != "none" and _vary_in_one_choice(spec.space):
        _check_rates(spec, [each.num_trained for each in found])
    return list(dict.fromkeys(chain(doubts, *(each.findings for each in found))))


#: What a setting may be, in a message that names all of it.
_QUOTED: Final = re.compile(r"'([^']*)'")

#: Settings on which the course of the learning rate depends, with the value of those that a study
#: searches by which it is most likely to peak and to fall.
_MOST_LIKELY: Final = {
    "learning_rate": max,
    "epochs": max,
    "max_steps": max,
    "batch_size": min,
    "batch_tokens": min,
    "warmup_steps": min,
    "warmup_fraction": min,
    **{f"schedule_options.{name}": min for name in ("lr_end", "min_lr", "num_decay_steps")},
}


def _check_rates(spec: StudySpec, sizes: Sequence[int | None] = ()) -> None:
    """Refuse learning rates that rise or never peak, whatever the sampler draws.

    A trial of which that is so where others are well ends with that reason.

    Args:
        spec: The study.
        sizes: Rows that are trained on, of each data set that a trial may get; None of one that
            was not read.
    """
    known = [size for size in sizes if size is not None]
    num_rows = max(known) if len(known) == len(sizes) and known else None
    searched = {name: each for name, each in spec.space.items() if name in _MOST_LIKELY}
    if "schedule" in spec.space:
        return  # each trial has its own
    best = {name: _best_of(name, _bounds(each)) for name, each in searched.items()}
    configs = [merge_params(spec.config, best)]
    if any(each.when for each in searched.values()):
        configs.append(spec.config)  # as it is where they are not searched
    checked = [_validated(each, "config") for each in configs]
    problems = [find_rate_problem(each, _most_steps(each, num_rows)) for each in checked]
    if all(problems):
        at_best = ", ".join(f"{name} = {value}" for name, value in best.items())
        where = f" (at {at_best}, the best of `space`)" if best else ""
        raise InvalidInputError(f"config: {problems[0]}{where}")


def _most_steps(config: FinetuneConfig, num_rows: int | None) -> int | None:
    """How long a training is at most; None where nothing tells."""
    if num_rows is None:
        return config.max_steps
    at_once = config.batch_size if config.batch_tokens is None else 1
    return config.num_steps(-(-num_rows // at_once))


def _best_of(name: str, values: Sequence[Any]) -> Any:
    given = [value for value in values if value is not None]
    return _MOST_LIKELY[name](given, key=float) if len(given) == len(values) else None


def _bounds(dimension: Dimension) -> list[Any]:
    """The ends of an interval, or all choices."""
    if isinstance(dimension, CategoricalDimension):
        return dimension.choices
    return [dimension.low, dimension.high]


def _check_metrics(spec: StudySpec, config: FinetuneConfig) -> list[str]:
    """Refuse metrics that the study's task does not measure; which of them go the wrong way."""
    known = TASKS[config.task].metrics
    what = FINETUNE if config.task == DEFAULT_TASK else f"{FINETUNE} with task: {config.task}"
    if not spec.metrics:
        usual, way = next(iter(known.items()))
        raise InvalidInputError(
            f"metric is missing; {what} reports {', '.join(known)}; the usual one is {usual}, with"
            f" direction: {way}"
        )
    for metric in spec.metrics:
        if metric not in known:
            raise InvalidInputError(
                f"metric = {metric!r}: {what} reports {', '.join(known)}{nearest(metric, known)}"
            )
    return [
        f"metric = {metric!r}: the study's direction is {direction}, and"
        f" {'higher' if direction == 'minimize' else 'lower'} is better; set direction:"
        f" {known[metric]}"
        for metric, direction in zip(spec.metrics, spec.all_directions, strict=True)
        if known[metric] != direction
    ]


def _check_measurable(metrics: Sequence[str], data: DataConfig, held_out: HeldOut | None) -> None:
    """Refuse metrics that the held-out labels leave undefined."""
    if held_out is None:
        return
    if problem := held_out.problem(metrics, data.task):
        raise InvalidInputError(f"{problem} (config.data.source = {data.source!r})")


def _check_weighed(config: FinetuneConfig, classes: Sequence[str] | None) -> None:
    """Refuse weights of classes that the data have not."""
    if classes is None or not isinstance(config.class_weights, Mapping):
        return
    for name in config.class_weights:
        if name not in classes:
            raise InvalidInputError(
                f"config.class_weights.{name}: the data have no such class{nearest(name, classes)}"
            )


def _check_setting(label: str, path: list[str], model: type[BaseModel]) -> None:
    """Walk a dotted name down the settings."""
    head, *rest = path
    if head not in model.model_fields:
        if model.model_config.get("extra") == "allow":
            return
        raise InvalidInputError(f"{label}: no such setting of {FINETUNE}{_meant(head, model)}")
    kinds = _kinds(model.model_fields[head].annotation)
    section = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
    if not rest and kinds == [section]:
        raise InvalidInputError(f"{label}: {head!r} is a group of settings; name one in it")
    if rest and section is not None:
        _check_setting(label, rest, section)
    elif rest and dict not in kinds:
        raise InvalidInputError(f"{label}: {head!r} has none below it")


def _meant(name: str, model: type[BaseModel]) -> str:
    """What was probably meant: a setting of this section, or of one below it."""
    for section, field in model.model_fields.items():
        for kind in _kinds(field.annotation):
            if issubclass(kind, BaseModel) and name in kind.model_fields:
                return f"; did you mean {section}.{name}?"
    return nearest(name, model.model_fields)


def _kinds(annotation: Any) -> list[type]:
    """The classes of what a setting may be, None aside: `Every | None` is an `Every`."""
    if get_origin(annotation) in {Union, UnionType}:
        parts = [kind for part in get_args(annotation) for kind in _kinds(part)]
        return [kind for kind in parts if kind is not type(None)]
    kind = get_origin(annotation) or annotation
    return [kind] if isinstance(kind, type) else []


def _corners(space: Mapping[str, Dimension]) -> Iterable[tuple[str, dict[str, Any]]]:
    """Each bound and each choice of each parameter, by itself."""
    for name, dimension in space.items():
        for value in _bounds(dimension):
            yield f"space.{name}", {name: value}


def _validated(config: Mapping[str, Any], label: str) -> FinetuneConfig:
    try:
        return FinetuneConfig.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        where = label if label.startswith("space.") else ".".join([label, *path])
        if first["type"] == "extra_forbidden":
            _check_setting(where, path, FinetuneConfig)
        message = first["msg"].removeprefix("Value error, ").replace("Input should", "it should")
        if first["type"] == "literal_error":
            message += nearest(str(first["input"]), _QUOTED.findall(first["ctx"]["expected"]))
        # settings that contradict one another are named by the message, of all that were given
        value = f" = {first['input']!r}" if path else ""
        raise InvalidInputError(f"{where}{value}: {message}") from error


def _vary_in_one_choice(space: Mapping[str, Dimension]) -> bool:
    """Whether `_data_variants` are all data sections that a trial may get."""
    varied = [each for name, each in space.items() if name.startswith("data.")]
    return all(isinstance(each, CategoricalDimension) for each in varied) and len(varied) < 2


def _data_variants(spec: StudySpec, config: FinetuneConfig) -> Iterable[DataConfig]:
    """Every data section that a trial may get, as far as sources and columns are varied."""
    yield config.data
    for name, dimension in spec.space.items():
        if name.startswith("data.") and isinstance(dimension, CategoricalDimension):
            for choice in dimension.choices:
                yield FinetuneConfig.model_validate(merge_params(spec.config, {name: choice})).data
