"""`nothing.py`'s objective, in a pool process whose phases are timed from its import on.

Each process leaves what it has spent in the folder that `PHASES_VARIABLE` names.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Final

from nothing import objective as do_nothing
from phase_clock import PhaseClock

from workers.trials.attempts import Attempts
from workers.trials.ending import AttemptEnd
from workers.trials.handle import FleetTrial
from workers.trials.runner import TrialRunner

PHASES_VARIABLE: Final = "TRIALFLEET_BENCH_PHASES"

#: Between two times that what was spent is written down.
_WRITE_SECONDS: Final = 0.5

_CLOCK: Final = PhaseClock()
_CLOCK.watch(TrialRunner, "run", "message")
_CLOCK.watch(TrialRunner, "_claim", "claim")
_CLOCK.watch(Attempts, "_run", "objective and what is around it")
_CLOCK.watch(Attempts, "_leave", "putting the process back")
_CLOCK.watch(Attempts, "_tidy", "tidying")
_CLOCK.watch(AttemptEnd, "commit", "commit")

_written_at = 0.0


def objective(trial: FleetTrial) -> float:
    """As `nothing.py`'s."""
    global _written_at
    if time.monotonic() - _written_at > _WRITE_SECONDS:
        _written_at = time.monotonic()
        path = Path(os.environ[PHASES_VARIABLE]) / f"{os.getpid()}.json"
        path.with_suffix(".new").write_text(json.dumps([_written_at, _CLOCK.spent()]))
        path.with_suffix(".new").replace(path)
    return do_nothing(trial)
