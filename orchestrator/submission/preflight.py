"""All that can be known to be wrong with a study before anything of it is enqueued."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

from optuna import samplers

from orchestrator.submission.algorithms import make_pruner, make_sampler
from orchestrator.submission.finetune_check import check_finetune
from orchestrator.submission.model_check import check_models
from orchestrator.submission.promotion_check import promotion_findings
from orchestrator.submission.rehearsal import rehearse
from orchestrator.submission.space import check_space
from workers.disk.cache import Cache
from workers.protocol.errors import InvalidInputError, nearest
from workers.protocol.plain import plain_text
from workers.protocol.spec import FINETUNE, SELF_CHECK, StudySpec
from workers.settings import environment_without_secrets

#: How long importing an objective may take; torch and transformers need some seconds.
_IMPORT_SECONDS: Final = 300.0

#: Samplers that look at no trials, or only at those that they drew themselves.
_BLIND: Final = (
    samplers.RandomSampler,
    samplers.GridSampler,
    samplers.BruteForceSampler,
    samplers.QMCSampler,
    samplers.CmaEsSampler,
    samplers.NSGAIISampler,
    samplers.NSGAIIISampler,
)

#: What workers import by name beyond what is loaded here: a file of that name beside an
#: objective's would be taken for it.
_NEEDED: Final = (
    "workers", "orchestrator", "celery", "kombu", "billiard", "vine", "redis", "optuna", "pydantic",
    "structlog", "psutil", "torch", "transformers", "tokenizers", "safetensors", "datasets",
    "torchmetrics", "numpy", "filelock", "xxhash", "platformdirs", "babel", "wandb", "pynvml",
    "accelerate", "huggingface_hub", "pyarrow", "pandas", "fsspec", "yaml", "tqdm", "json",
    "logging", "random", "socket", "signal", "select", "queue", "types", "enum", "typing", "copy",
    "threading", "multiprocessing", "inspect", "functools",
)  # fmt: skip


def check(
    spec: StudySpec,
    *,
    import_directory: Path | None = None,
    home: Path | None = None,
    cache: Cache | None = None,
    samplers: Collection[str] = (),
) -> list[str]:
    """Refuse a study that could not run; of one that could, what people should know.

    Args:
        spec: The study.
        import_directory: Where the objective's module lies, beside the import path.
        home: Where it is kept which data files were read and found good.
        cache: Where it is kept which models were tried and found good.
        samplers: Modules that samplers and pruners may be imported from, beside Optuna.

    Raises:
        InvalidInputError: The message names the field, the value and the way out.
    """
    check_space(spec)
    sampler = make_sampler(spec, allowed=samplers)
    pruner = make_pruner(spec, allowed=samplers)
    _refuse_unfit_algorithms(spec, sampler)
    rehearse(spec, sampler, pruner)
    if spec.objective == FINETUNE:
        findings = check_finetune(spec, home)
        check_models(spec, cache)
        return findings
    if spec.objective == SELF_CHECK:
        return []
    directory = import_directory or Path.cwd()
    return _check_import(spec.objective, directory) + promotion_findings(spec, directory)


def _refuse_unfit_algorithms(spec: StudySpec, sampler: samplers.BaseSampler) -> None:
    """Refuse a pruner or a sampler that the rest of the study leaves no use for."""
    if len(spec.all_directions) > 1 and (spec.pruner.prunes or spec.pruner.promote):
        raise InvalidInputError(
            f"pruner.type = {spec.pruner.type!r}: a study with several directions cannot be pruned;"
            " use none"
        )
    if spec.warm_start is not None and isinstance(sampler, _BLIND):
        raise InvalidInputError(
            f"from = {spec.warm_start.study!r}: sampler.type = {spec.sampler.type!r} learns nothing"
            " from trials of another study; use tpe or gp, or leave `from` out"
        )


def _check_import(objective: str, directory: Path) -> list[str]:
    """Refuse an objective that does not import; what is left to be found out, if anything."""
    if ":" not in objective:
        raise InvalidInputError(
            f"objective = {objective!r}: write {FINETUNE}, package.module:function or"
            f" file.py:function{nearest(objective, [FINETUNE])}"
        )
    _check_neighbours(objective, directory)
    told = _import_elsewhere(objective, directory)
    if told["problem"] is not None:
        raise InvalidInputError(f"objective = {objective!r}: {told['problem']}; mend it")
    if told.get("absent") is None:
        return []
    finding = (
        f"objective = {objective!r} was not imported: this host runs no trials, and has no"
        f" {told['absent']}; workers find out whether it imports"
    )
    return [finding]


def import_path(directory: Path) -> str:
    """`PYTHONPATH` for processes that import an objective's module from a directory.

    A directory whose name holds the separator cannot be in it; files are found by their path.
    """
    own = [] if os.pathsep in str(directory) else [str(directory)]
    return os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])


def _import_elsewhere(objective: str, directory: Path) -> dict[str, str | None]:
    """Import an objective in a process of its own.

    Returns:
        `problem`, what is wrong with it, if anything; `absent`, a package that this host, which
        runs no trials, lacks.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        # by its file: `-m` would import the orchestrator's whole package first
        program = Path(__file__).with_name("import_check.py")
        surroundings = {
            **environment_without_secrets(),
            "PYTHONPATH": import_path(directory),
            "CUDA_VISIBLE_DEVICES": "",
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
            return _problem(
                f"importing it took over {_IMPORT_SECONDS:.0f} s; move work from its module's top"
                " into the function, or submit it again when this machine is less busy"
            )
        if answer.exists():
            told: dict[str, str | None] = json.loads(answer.read_text())
            return told
    # what the module itself printed may be in any encoding
    errors = plain_text(finished.stderr.decode(errors="backslashreplace")).strip().splitlines()
    tail = (errors or ["no message"])[-1]
    return _problem(f"importing it ended the process with code {finished.returncode}: {tail}")


def _problem(text: str) -> dict[str, str | None]:
    return {"problem": text}


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
