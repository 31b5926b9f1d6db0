"""What opening a long study costs, beside Optuna's own journal storage on the same file.

Each opening is a process of its own: seconds until all trials are there, and the memory that its
process has then, beyond what it had before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Final

import optuna
import psutil
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState

from orchestrator.storage.opening import StudyStorage

_REPORTS: Final = 10
_PARAMS: Final = 5
_MEGABYTE: Final = 1 << 20


def main() -> None:
    """Measure, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[1000, 5000, 20_000])
    parser.add_argument("--open", choices=_OPENINGS, help="open one journal in this process")
    parser.add_argument("--journal", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(json.dumps(_opened(given.open, given.journal) if given.open else _all(given.trials)))


def _all(sizes: list[int]) -> dict[str, object]:
    found = []
    for num_trials in sizes:
        with tempfile.TemporaryDirectory() as folder:
            journal = Path(folder) / "journal.log"
            print(f"writing {num_trials} trials", file=sys.stderr)
            _write(journal, num_trials)
            megabytes = round(journal.stat().st_size / _MEGABYTE, 1)
            sides = {side: _in_a_process(side, journal) for side in _OPENINGS}
        found.append({"trials": num_trials, "journal_megabytes": megabytes, **sides})
    return {"reports": _REPORTS, "optuna": optuna.__version__, "opened": found}


def _write(journal: Path, num_trials: int) -> None:
    opened = StudyStorage.open(f"journal://{journal}")
    storage, distribution = opened.storage, FloatDistribution(-10.0, 10.0)
    study = storage.create_new_study([StudyDirection.MINIMIZE], "long")
    for number in range(num_trials):
        trial = storage.create_new_trial(study)
        for each in range(_PARAMS):
            storage.set_trial_param(trial, f"x{each}", number % 17 / 2, distribution)
        for step in range(_REPORTS):
            storage.set_trial_intermediate_value(trial, step, 1.0 / (step + 1))
        for name in ("state", "attempt", "busy_seconds"):
            storage.set_trial_user_attr(trial, f"trialfleet:{name}", 1)
        storage.set_trial_state_values(trial, TrialState.COMPLETE, [number / 7])
    opened.close()


def _in_a_process(side: str, journal: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--open", side, "--journal", str(journal)]
    found: dict[str, float] = json.loads(subprocess.check_output(command))
    print(side, found, file=sys.stderr)
    return found


def _opened(side: str, journal: Path) -> dict[str, float]:
    process = psutil.Process()
    before, started = process.memory_info().rss, time.perf_counter()
    storage = _OPENINGS[side](journal)
    num_trials = len(storage.get_all_trials(0, deepcopy=False))
    seconds = time.perf_counter() - started
    megabytes = (process.memory_info().rss - before) / _MEGABYTE
    return {"trials": num_trials, "seconds": round(seconds, 2), "megabytes": round(megabytes)}


_OPENINGS: Final[dict[str, Callable[[Path], BaseStorage]]] = {
    "trialfleet": lambda journal: StudyStorage.open(f"journal://{journal}").storage,
    "plain_optuna": lambda journal: JournalStorage(JournalFileBackend(str(journal))),
}

if __name__ == "__main__":
    main()
