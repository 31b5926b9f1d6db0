"""The orchestrator: submits studies, asks Optuna for trials, and drives them to their end.

Importing it brings neither torch nor transformers nor wandb.
"""

from __future__ import annotations

from orchestrator.fleet import Fleet, connect
from orchestrator.handle import StudyHandle
from orchestrator.submission.study import Study
from orchestrator.submission.submit import submit

__all__ = ["Fleet", "Study", "StudyHandle", "connect", "submit"]
