"""The models that a study may build, tried in a process of their own before anything is enqueued.

What was found good stays so on this host, until the study's settings or the libraries change.

Invariant: the orchestrator itself imports no torch. A host without it checks nothing here; there
the first trial tells what is wrong.
"""

from __future__ import annotations

import importlib.util
import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from orchestrator.submission.space import suggestion_order
from workers.disk.cache import Cache
from workers.disk.cache_sweep import CacheLimits
from workers.logs import get_logger
from workers.protocol.errors import InvalidInputError
from workers.protocol.finetune import DECIDES_THE_MODEL, DataConfig, FinetuneConfig
from workers.protocol.parameters import CategoricalDimension, merge_params
from workers.protocol.plain import plain_text
from workers.protocol.spec import StudySpec
from workers.settings import Settings, environment_without_secrets

log = get_logger(__name__)

#: Not imported here, which would load torch.
_PROGRAM: Final = "workers.managers.model_check"

_NEEDED: Final = ("torch", "transformers", "tokenizers")

#: Of more combinations than these, some are tried.
_MOST_TRIED: Final = 24

#: How long trying them may take; what a slow host has not tried by then is left to the trials.
_SECONDS: Final = 180.0


def check_models(spec: StudySpec, cache: Cache | None = None) -> None:
    """Refuse a study with a model that cannot be built, or that does not take its texts.

    Args:
        spec: A study of the built-in objective, whose settings are good otherwise.
        cache: Where it is kept what was found good; None keeps nothing.

    Raises:
        InvalidInputError: What is wrong with which model, and for which parameters.
    """
    if any(importlib.util.find_spec(name) is None for name in _NEEDED):
        return
    requests = _requests(spec)
    if cache is None:
        _try(requests)
        return

    def build(folder: Path) -> Mapping[str, Any]:
        _try(requests)
        (folder / "models.json").write_text(json.dumps(requests))
        return {"models": len(requests)}

    key = {
        "models": requests,
        "files": sorted({state for each in requests for state in _states_of(each)}),
        "versions": {name: _version(name) for name in (*_NEEDED, "peft")},
    }
    try:
        cache.get("checks", key, build)
    except OSError as error:
        log.warning("check_not_kept", error=str(error))
        _try(requests)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def kept_checks(settings: Settings) -> Cache:
    """Where this host keeps what was found good."""
    return Cache(settings.cache, CacheLimits(settings.cache_size, settings.cache_age))


def combinations(spec: StudySpec) -> list[dict[str, Any]]:
    """Parameters that a trial may have: the bounds and choices of all that its model follows from.

    Of very many, a fixed random choice.
    """
    matter = {name for name in spec.space if name.startswith(DECIDES_THE_MODEL)}
    order = [name for name in suggestion_order(spec) if name in _with_conditions(spec, matter)]
    found: list[dict[str, Any]] = [{}]
    for name in order:
        found = [{**params, **more} for params in found for more in _values(spec, name, params)]
        if len(found) > _MOST_TRIED:
            found = random.Random(0).sample(found, _MOST_TRIED)
    return found


def _requests(spec: StudySpec) -> list[dict[str, Any]]:
    """What is asked about each combination: the sections that a model follows from."""
    asked = {}
    for params in combinations(spec):
        config = FinetuneConfig.model_validate(merge_params(spec.config, params))
        request = {
            "task": config.task,
            "model": config.model.model_dump(mode="json", exclude_none=True),
            "tokenizer": config.tokenizer.model_dump(mode="json"),
            "data": _lengths(config.data),
            "dropout": config.dropout,
            "lora": config.lora and config.lora.model_dump(mode="json"),
            "freeze": config.freeze,
            "gradient_checkpointing": config.gradient_checkpointing,
        }
        asked[json.dumps(request, sort_keys=True)] = request
    return list(asked.values())


def _lengths(data: DataConfig) -> dict[str, Any]:
    """What of the data a model has to fit."""
    if data.block_size is None:
        return {"max_length": data.max_length}
    return {"block_size": data.block_size, "across_texts": data.across_texts}


def _with_conditions(spec: StudySpec, names: set[str]) -> set[str]:
    """Parameters, and those on which it depends whether they exist."""
    others = {other for name in names for other in spec.space[name].when} - names
    return _with_conditions(spec, names | others) if others else names


def _values(spec: StudySpec, name: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a parameter may be beside others: its bounds or choices, or not there."""
    dimension = spec.space[name]
    if any(params.get(other) not in allowed for other, allowed in dimension.when.items()):
        return [{}]
    if isinstance(dimension, CategoricalDimension):
        return [{name: choice} for choice in dimension.choices]
    return [{name: value} for value in sorted({dimension.low, dimension.high})]


def _states_of(request: Mapping[str, Any]) -> Iterator[str]:
    """What changes with the files of a model or tokenizer on this host."""
    for section in ("model", "tokenizer"):
        name = request[section].get("id")
        if name is not None and (folder := Path(name)).is_dir():
            files = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
            yield json.dumps([[file, stat.st_size, stat.st_mtime_ns] for file, stat in files])


def _try(requests: Sequence[Mapping[str, Any]]) -> None:
    """Try models in another process.

    Raises:
        InvalidInputError: One of them is wrong, or ends the process.
    """
    with TemporaryDirectory() as folder:
        request, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        request.write_text(json.dumps(requests))
        command = [sys.executable, "-P", "-m", _PROGRAM, str(request), str(answer)]
        try:
            finished = subprocess.run(
                command,
                env={
                    **environment_without_secrets(),
                    "CUDA_VISIBLE_DEVICES": "",
                    "TOKENIZERS_PARALLELISM": "false",
                },
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            log.warning("models_not_tried", reason=f"it took over {_SECONDS:.0f} s")
            return
        said = json.loads(answer.read_text()) if answer.exists() else {}
    if said.get("problem"):
        raise InvalidInputError(said["problem"])
    if finished.returncode < 0 and "trying" in said:
        raise InvalidInputError(
            f"config.model = {requests[said['trying']]['model']}: a step of training it ended the"
            f" process ({signal.Signals(-finished.returncode).name}); take other sizes"
        )
    if finished.returncode != 0:
        # of this host, it may be: the workers are to tell
        errors = plain_text(finished.stderr.decode(errors="backslashreplace")).strip()
        log.warning("models_not_tried", reason=(errors.splitlines() or ["no message"])[-1])
