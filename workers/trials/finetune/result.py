"""What a training leaves for people: its evaluations, and its model where that is wanted.

Invariant: a disk that takes no more costs the files, and never the trial's values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError

from workers.logs import get_logger
from workers.managers import DirectoryManager, ModelManager
from workers.trials.handle import FleetTrial

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A training that has come to its end."""

    classes: Sequence[str]
    evaluations: Sequence[dict[str, float]]
    counted: Mapping[str, float]
    """The evaluation that is the trial's result."""
    tokenizer: Any
    model: Any | None
    """The model as it was at that evaluation, or None where it is not wanted."""


def leave_result(
    trial: FleetTrial, result: TrainingResult, directories: DirectoryManager, models: ModelManager
) -> None:
    """Write `metrics.json` and the model into the trial's folder."""
    try:
        _write(trial, result, directories, models)
    except (OSError, SafetensorError) as error:
        log.warning("result_not_written", error=str(error), hint="make room on the disk")
        trial.set_user_attr("result_error", str(error))


def _write(
    trial: FleetTrial, result: TrainingResult, directories: DirectoryManager, models: ModelManager
) -> None:
    content = {
        "study": trial.study_name,
        "trial": trial.number,
        "params": trial.params,
        "classes": result.classes,
        "evaluations": result.evaluations,
        "result_step": result.counted["step"],
    }
    folder = trial.result_directory
    directories.atomic_write(
        folder / "metrics.json", json.dumps(content, indent=2, ensure_ascii=False)
    )
    if result.model is not None:
        models.save(result.model, folder / "model", result.tokenizer)
