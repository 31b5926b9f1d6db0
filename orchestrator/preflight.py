"""All that can be known to be wrong with a study before anything of it is enqueued."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from orchestrator.rehearsal import rehearse
from orchestrator.space import check_space, make_pruner, make_sampler, nearest
from workers.protocol.errors import InvalidInputError
from workers.protocol.finetune import (
    BUILT_IN_SOURCES,
    FILE_FORMATS,
    METRICS,
    DataConfig,
    FinetuneConfig,
)
from workers.protocol.plain import plain_text
from workers.protocol.spec import (
    FINETUNE,
    IMPORTING,
    CategoricalDimension,
    Dimension,
    StudySpec,
    merge_params,
)

#: How long importing an objective may take; torch and transformers need some seconds.
_IMPORT_SECONDS: Final = 120.0

#: What workers import by name beyond what is loaded here: a file of that name beside an
#: objective's would be taken for it.
_NEEDED: Final = (
    "workers", "orchestrator", "celery", "kombu", "billiard", "vine", "redis", "optuna", "pydantic",
    "structlog", "psutil", "torch", "transformers", "tokenizers", "safetensors", "datasets",
    "torchmetrics", "numpy", "filelock", "babel", "wandb", "pynvml", "accelerate",
    "huggingface_hub", "pyarrow", "pandas", "fsspec", "yaml", "tqdm", "json", "logging", "random",
    "socket", "signal", "select", "queue", "types", "enum", "typing", "copy", "threading",
    "multiprocessing", "inspect", "functools",
)  # fmt: skip


def check(spec: StudySpec, *, import_directory: Path | None = None) -> None:
    """Refuse a study that could not run.

    Args:
        spec: The study.
        import_directory: Where the objective's module lies, beside the import path.

    Raises:
        InvalidInputError: The message names the field, the value and the way out.
    """
    check_space(spec)
    sampler, pruner = make_sampler(spec), make_pruner(spec)
    if len(spec.all_directions) > 1 and spec.pruner.type != "none":
        raise InvalidInputError(
            f"pruner.type = {spec.pruner.type!r}: a study with several directions cannot be pruned;"
            " use none"
        )
    rehearse(spec, sampler, pruner)
    if spec.objective == FINETUNE:
        _check_finetune(spec)
    else:
        _check_import(spec.objective, import_directory or Path.cwd())


def _check_import(objective: str, directory: Path) -> None:
    if ":" not in objective:
        raise InvalidInputError(
            f"objective = {objective!r}: write {FINETUNE}, package.module:function or"
            f" file.py:function{nearest(objective, [FINETUNE])}"
        )
    _check_neighbours(objective, directory)
    problem = _import_elsewhere(objective, directory)
    if problem is not None:
        raise InvalidInputError(f"objective = {objective!r}: {problem}; mend it")


def import_path(directory: Path) -> str:
    """`PYTHONPATH` for processes that import an objective's module from a directory.

    A directory whose name holds the separator cannot be in it; files are found by their path.
    """
    own = [] if os.pathsep in str(directory) else [str(directory)]
    return os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])


def _import_elsewhere(objective: str, directory: Path) -> str | None:
    """Import an objective in a process of its own; what is wrong with it, if anything."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        # by its file: `-m` would import the orchestrator's whole package first
        program = Path(__file__).with_name("import_check.py")
        surroundings = {
            **os.environ,
            "PYTHONPATH": import_path(directory),
            "CUDA_VISIBLE_DEVICES": "",
            IMPORTING: objective.rpartition(":")[0],
        }
        try:
            finished = subprocess.run(
                [sys.executable, "-P", str(program), objective, str(answer)],
                env=surroundings,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_IMPORT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return (
                f"importing it took over {_IMPORT_SECONDS:.0f} s; move work from its module's top"
                " into the function"
            )
        if answer.exists():
            problem: str | None = json.loads(answer.read_text())["problem"]
            return problem
    # what the module itself printed may be in any encoding
    errors = plain_text(finished.stderr.decode(errors="backslashreplace")).strip().splitlines()
    tail = (errors or ["no message"])[-1]
    return f"importing it ended the process with code {finished.returncode}: {tail}"


def _check_neighbours(objective: str, directory: Path) -> None:
    """Refuse files beside an objective's that would be imported in place of what workers need."""
    module = objective.rpartition(":")[0]
    folder = Path(module).parent if module.endswith(".py") else directory
    elsewhere = [entry for entry in sys.path if Path(entry).resolve() != folder.resolve()]
    loaded = {name.partition(".")[0] for name in list(sys.modules)}
    for name in sorted({*_NEEDED, *loaded}):
        for neighbour in (folder / f"{name}.py", folder / name / "__init__.py"):
            found = PathFinder.find_spec(name, elsewhere) if neighbour.is_file() else None
            if found is not None and found.origin is not None:
                raise InvalidInputError(
                    f"objective = {objective!r}: {neighbour} would be imported in place of"
                    f" {found.origin}, which workers need; rename it"
                )


def _check_finetune(spec: StudySpec) -> None:
    if not spec.metrics:
        raise InvalidInputError(f"metric is missing; {FINETUNE} reports {', '.join(METRICS)}")
    for metric in spec.metrics:
        if metric not in METRICS:
            raise InvalidInputError(
                f"metric = {metric!r}: {FINETUNE} reports {', '.join(METRICS)}"
                f"{nearest(metric, METRICS)}"
            )
    for name in spec.space:
        _check_setting(f"space.{name}", name.split("."), FinetuneConfig)
    config = _validated(spec.config, "config")
    for corner, params in _corners(spec.space):
        _validated(merge_params(spec.config, params), corner)
    for data in _data_variants(spec, config):
        _check_data(data)


def _check_setting(label: str, path: list[str], model: type[BaseModel]) -> None:
    """Walk a dotted name down the settings."""
    head, *rest = path
    if head not in model.model_fields:
        if model.model_config.get("extra") == "allow":
            return
        raise InvalidInputError(
            f"{label}: no such setting of {FINETUNE}{nearest(head, model.model_fields)}"
        )
    section = model.model_fields[head].annotation
    is_section = isinstance(section, type) and issubclass(section, BaseModel)
    if is_section != bool(rest):
        problem = "is a group of settings; name one in it" if is_section else "has none below it"
        raise InvalidInputError(f"{label}: {head!r} {problem}")
    if rest and isinstance(section, type):
        _check_setting(label, rest, section)


def _corners(space: Mapping[str, Dimension]) -> Iterable[tuple[str, dict[str, Any]]]:
    """Each bound and each choice of each parameter, by itself."""
    for name, dimension in space.items():
        values = (
            dimension.choices
            if isinstance(dimension, CategoricalDimension)
            else [dimension.low, dimension.high]
        )
        for value in values:
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
        raise InvalidInputError(f"{where} = {first['input']!r}: {message}") from error


def _data_variants(spec: StudySpec, config: FinetuneConfig) -> Iterable[DataConfig]:
    """Every data section that a trial may get, as far as sources and columns are varied."""
    yield config.data
    for name, dimension in spec.space.items():
        if name.startswith("data.") and isinstance(dimension, CategoricalDimension):
            for choice in dimension.choices:
                yield FinetuneConfig.model_validate(merge_params(spec.config, {name: choice})).data


def _check_data(data: DataConfig) -> None:
    _check_source("config.data.source", data.source, data)
    if data.validation is not None:
        _check_source("config.data.validation", data.validation, data)


def _check_source(field: str, source: str, data: DataConfig) -> None:
    if source in BUILT_IN_SOURCES or source.startswith("hub:"):
        return
    path = Path(source)
    file_format = FILE_FORMATS.get(path.suffix.lower())
    if file_format is None:
        raise InvalidInputError(
            f"{field} = {source!r}: files end in {', '.join(FILE_FORMATS)}; built in is"
            f" {', '.join(BUILT_IN_SOURCES)}{nearest(source, BUILT_IN_SOURCES)}"
        )
    if not path.is_file():
        raise InvalidInputError(f"{field} = {source!r}: there is no such file; mend the path")
    try:
        columns = read_columns(path, file_format)
    except (ValueError, OSError, csv.Error) as error:
        raise InvalidInputError(
            f"{field} = {source!r} cannot be read as {file_format}: {error}"
        ) from error
    for role in ("text", "label"):
        column = getattr(data, role)
        if column not in columns:
            raise InvalidInputError(
                f"config.data.{role} = {column!r}: {path.name} has no such column (it has"
                f" {', '.join(columns) or 'none'}){nearest(column, columns)}"
            )


def read_columns(path: Path, file_format: str) -> list[str]:
    """The columns of a file, from its head alone.

    Raises:
        ValueError: The file is not of that format.
    """
    if file_format == "parquet":
        import pyarrow.parquet

        return [str(name) for name in pyarrow.parquet.read_schema(path).names]
    with path.open(encoding="utf-8-sig", newline="") as file:
        if file_format == "csv":
            delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
            return next(csv.reader(file, delimiter=delimiter), [])
        first_line = file.readline().strip()
        if first_line.startswith("["):
            rows = json.loads(first_line + file.read())
            return list(rows[0]) if rows else []
        row = json.loads(first_line or "{}")
        if not isinstance(row, dict):
            raise ValueError(f"its first line is {first_line[:60]!r}, and not an object")  # noqa: TRY004
        return list(row)
