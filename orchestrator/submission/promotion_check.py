"""What people should know of a study that promotes, before it runs.

Invariant: nothing of the objective is imported.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from workers.objective_source import find_source
from workers.protocol.spec import FINETUNE, StudySpec

#: What an objective calls that goes on where it stopped: by itself, with transformers' Trainer, or
#: with `trial.training`.
_RESUMING: Final = ("load_checkpoint", "resume_from_checkpoint", ".training(")


def promotion_findings(spec: StudySpec, directory: Path) -> list[str]:
    """That promoted trials start anew, where the objective's file shows that they do.

    Args:
        spec: The study.
        directory: Where the objective's module lies, beside the import path.
    """
    if not spec.pruner.promote or spec.objective == FINETUNE:
        return []
    file = find_source(spec.objective, [str(directory), *sys.path])
    text = "" if file is None else file.read_text(errors="replace")
    if file is None or any(name in text for name in _RESUMING):
        return []
    anew = (
        f"pruner.promote: {file} never calls trial.{_RESUMING[0]}: a promoted trial starts anew at"
        " each rung; save checkpoints and load them there, or use asha without promote"
    )
    return [anew]
