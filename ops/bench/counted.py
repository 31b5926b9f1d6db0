"""`finetune` with every step written down, so that steps that were trained twice can be counted."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from workers.trials.finetune import finetune
from workers.trials.handle import FleetTrial

#: The variable that names the directory of the step logs, one file a trial in one folder a study.
STEPS_VARIABLE: Final = "BENCH_STEPS"


class CountedTrial:
    """A trial that appends `<attempt> <step>` to its log before each step."""

    def __init__(self, trial: FleetTrial) -> None:
        self._trial = trial
        folder = Path(os.environ[STEPS_VARIABLE]) / trial.study_name
        folder.mkdir(exist_ok=True)
        path = folder / str(trial.number)
        self._log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def progress(self, step: int, **told: Any) -> None:
        """Note the step, if training may make it."""
        self._trial.progress(step, **told)
        os.write(self._log, f"{self._trial.attempt} {step}\n".encode())

    def close(self) -> None:
        """Close the log."""
        os.close(self._log)


@functools.wraps(finetune)  # the managers that it asks for, too
def objective(trial: FleetTrial, **managers: Any) -> dict[str, float]:
    """Train as `finetune` does."""
    counted: Any = CountedTrial(trial)
    try:
        return finetune(counted, **managers)
    finally:
        counted.close()


@dataclass(frozen=True, slots=True)
class Steps:
    """What the logs of a study tell."""

    trained: int
    """Steps of all attempts."""
    repeated: int
    """Those of them that an earlier attempt had made."""
    most_repeated: int
    """The most that one attempt had to make again."""


def count_steps(folder: Path) -> Steps:
    """Read the logs of all trials of a study."""
    trained = repeated = most = 0
    for path in folder.iterdir():
        by_attempt: dict[int, set[int]] = {}
        for line in path.read_text().splitlines():
            attempt, step = map(int, line.split())
            by_attempt.setdefault(attempt, set()).add(step)
        before: set[int] = set()
        for _, steps in sorted(by_attempt.items()):
            trained += len(steps)
            repeated += len(steps & before)
            most = max(most, len(steps & before))
            before |= steps
    return Steps(trained, repeated, most)
