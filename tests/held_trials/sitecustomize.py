"""Has trials stay where they are once they have a checkpoint, for as long as a file is there.

Python imports it at its start where this folder is on `PYTHONPATH`. `HELD_TRIALS` is a folder: its
file `hold` holds trials, and a trial that stays leaves its number there. It goes on asking its
fleet whether it may train, and so hears of whatever befalls it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ["HELD_TRIALS"])
HOME = Path(os.environ["FLEET_HOME"])


def staying(progress: Callable[..., None]) -> Callable[..., None]:
    """`FleetTrial.progress`, which returns when nothing holds the trial."""

    def stay(trial: Any, *step: Any, **told: Any) -> None:
        progress(trial, *step, **told)
        while (FOLDER / "hold").exists() and any(
            HOME.glob(f"checkpoints/{trial.study_name}/{trial.number}/*/step-*")
        ):
            (FOLDER / f"held-{trial.number}").touch()
            time.sleep(0.05)
            progress(trial, *step, **told)

    return stay


class Patching(MetaPathFinder):
    """Changes the module of the trial's handle when it is imported."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        if name != "workers.trials.handle":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_patch(module: Any) -> None:
            execute(module)
            module.FleetTrial.progress = staying(module.FleetTrial.progress)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Patching())
