"""The orchestrator: submits studies, asks Optuna for trials, and drives them to their end.

Importing it brings neither torch nor transformers nor wandb; and nothing at all before a name is
asked for, so that the command line is there, for Ctrl-C too, before Optuna is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.fleet import Fleet, connect
    from orchestrator.handle import StudyHandle
    from orchestrator.local.delete_study import delete_study
    from orchestrator.submission.study import Study
    from orchestrator.submission.submit import submit

__all__ = ["Fleet", "Study", "StudyHandle", "connect", "delete_study", "submit"]

_HOMES = {
    "Fleet": "orchestrator.fleet",
    "Study": "orchestrator.submission.study",
    "StudyHandle": "orchestrator.handle",
    "connect": "orchestrator.fleet",
    "delete_study": "orchestrator.local.delete_study",
    "submit": "orchestrator.submission.submit",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
