"""Where things lie in the store: the names of checkpoints and results there, and back.

Invariant: a name holds the attempt's token, so that what an old attempt still uploads is never
taken for what a newer one did.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from workers.coordination.leases import CheckpointRef

#: The roots of both kinds.
CHECKPOINTS: Final = "checkpoints"
RESULTS: Final = "results"


def checkpoints_of(study: str, number: int) -> str:
    """What all checkpoints of a trial begin with."""
    return f"{CHECKPOINTS}/{study}/{number}/"


def checkpoint_key(study: str, number: int, token: int, step: int) -> str:
    """A checkpoint; below a home's root, its path."""
    return f"{checkpoints_of(study, number)}{token}/{step_folder(step)}"


def step_folder(step: int) -> str:
    """The folder of one step."""
    return f"step-{step:09d}"


def place_of(ref: CheckpointRef) -> tuple[int, int]:
    """The step and the token of a checkpoint, whichever home its path is in."""
    path = Path(ref.uri)
    return ref.step, int(path.parent.name) if path.parent.name.isdecimal() else 0


def place_of_key(key: str) -> tuple[int, int]:
    """The same of a key."""
    *_, token, step = key.split("/")
    return int(step.removeprefix("step-")), int(token)


def results_of(study: str, number: int) -> str:
    """What all results of a trial begin with: those of the attempt with the highest token count."""
    return f"{RESULTS}/{study}/{number}/"


def result_key(study: str, number: int, token: int) -> str:
    """What an accepted attempt left for people."""
    return f"{results_of(study, number)}{token}"
