"""Where things lie in the store: the names of checkpoints, results and outputs there, and back.

Invariant: a name holds the study's generation and the attempt's token, so that what an earlier
study of the name left, or an old attempt still uploads, is never taken for what a newer one did.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeVar

from workers.coordination.trial_record import CheckpointRef

T = TypeVar("T")

#: Checkpoints that a trial keeps: the newest, and one before it should the newest be bad.
KEPT: Final = 2

#: The roots of the kinds.
CHECKPOINTS: Final = "checkpoints"
RESULTS: Final = "results"
OUTPUTS: Final = "outputs"

#: Stands for the generation of a study that was begun without one.
_UNNAMED: Final = "unnamed"

_KEY: Final = re.compile(
    rf"{CHECKPOINTS}/[^/]+/[^/]+/\d+/\d+/step-\d+|{RESULTS}/[^/]+/[^/]+/\d+/\d+"
    rf"|{OUTPUTS}/[^/]+/[^/]+/\d+/\d+-\d+"
)


def is_key(path: str) -> bool:
    """Whether a checkpoint, a result or an output is called so."""
    return _KEY.fullmatch(path) is not None


def generation_folder(generation: str | None) -> str:
    """What a study's generation is called in a name."""
    return generation or _UNNAMED


def checkpoints_of(study: str, generation: str | None, number: int) -> str:
    """What all checkpoints of a trial begin with."""
    return f"{CHECKPOINTS}/{study}/{generation_folder(generation)}/{number}/"


def checkpoint_key(study: str, generation: str | None, number: int, token: int, step: int) -> str:
    """A checkpoint."""
    return f"{checkpoints_of(study, generation, number)}{token}/{step_folder(step)}"


def checkpoint_folder(root: Path, study: str, number: int, token: int, step: int) -> Path:
    """The same on a home's disk."""
    return root / study / str(number) / str(token) / step_folder(step)


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


def last_before(
    found: Iterable[T], accepted: tuple[int, int], place: Callable[[T], tuple[int, int]]
) -> list[T]:
    """Those of some checkpoints that a trial keeps when it goes on from one of them.

    Args:
        found: The trial's.
        accepted: The step and the token of the one that Redis points to.
        place: The step and the token of each.
    """
    return sorted((each for each in found if place(each) <= accepted), key=place)[-KEPT:]


def results_of(study: str, generation: str | None, number: int) -> str:
    """What all results of a trial begin with."""
    return f"{RESULTS}/{study}/{generation_folder(generation)}/{number}/"


def result_key(study: str, generation: str | None, number: int, token: int) -> str:
    """What an accepted attempt left for people."""
    return f"{results_of(study, generation, number)}{token}"


def token_of_result(key: str) -> int:
    """The attempt that left it."""
    return int(key.rpartition("/")[2])


def outputs_of(study: str, generation: str | None, number: int) -> str:
    """What the outputs of all attempts at a trial begin with."""
    return f"{OUTPUTS}/{study}/{generation_folder(generation)}/{number}/"


def output_key(study: str, generation: str | None, number: int, attempt: int, token: int) -> str:
    """What an attempt printed."""
    return f"{outputs_of(study, generation, number)}{attempt}-{token}"
