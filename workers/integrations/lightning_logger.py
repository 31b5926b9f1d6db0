"""Where a `lightning.Trainer` logs in a trial: to the curves of the trial's W&B run.

Invariant: a logger that Lightning made unasked leaves no files where the process runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
    # the same library by its other name; a script uses one of them
    from pytorch_lightning.loggers.logger import Logger
else:
    from lightning.pytorch.loggers.logger import Logger

from workers.trials.handle import FleetTrial

#: The loggers that Lightning makes when it is told nothing; they write where the process runs.
_DEFAULT_LOGGERS: Final = ("CSVLogger", "TensorBoardLogger")


class Curves(Logger):
    """A logger that adds to the curves of the trial's W&B run, and writes no files."""

    def __init__(self, trial: FleetTrial) -> None:
        super().__init__()
        self._trial = trial

    @property
    def name(self) -> str:
        """No folder of its own."""
        return ""

    @property
    def version(self) -> str:
        """No folder of its own."""
        return ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add points."""
        self._trial.log(metrics, step or 0)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Left out: the trial's parameters are in its run."""


def in_place_of(logger: Any, trial: FleetTrial) -> Any:
    """The trial's own curves in place of a default logger, which is to leave no files."""
    if type(logger).__name__ not in _DEFAULT_LOGGERS or Path(logger.save_dir) != Path.cwd():
        return logger
    folder = Path(logger.log_dir)
    if hasattr(logger.experiment, "close"):
        logger.experiment.close()
    for path in folder.glob(f"events.out.tfevents.*.{os.getpid()}.*"):
        path.unlink()
    for made in (folder, folder.parent):
        try:
            made.rmdir()
        except OSError:  # it is not there, or somebody else has something in it
            break
    return Curves(trial)
