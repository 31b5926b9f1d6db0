#!/usr/bin/env python
"""What an objective without a `space` pays more: questions to the orchestrator, and time.

A fleet of one slot runs an objective that asks for five float parameters and does nothing else,
one trial in flight, with and without a `space` in its study. A trial's time is from its claim to
its commit. Prints one JSON line.

    python ops/bench/defined_by_run.py --trials 300 --sampler random
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from bench_fleet import BenchFleet
from nothing import PARAMETERS

from orchestrator.handle import StudyHandle
from orchestrator.storage.tally import busy_seconds
from orchestrator.submission.submit import submit
from workers.coordination import keys
from workers.coordination.connection import connect
from workers.coordination.rights import Role
from workers.protocol.spec import StudySpec

OBJECTIVE: Final = f"{Path(__file__).with_name('nothing.py')}:objective"
SPACE: Final = {name: {"type": "float", "low": 0.0, "high": 1.0} for name in PARAMETERS}


def run_study(fleet: BenchFleet, name: str, **fields: Any) -> dict[str, Any]:
    """One study to its end: of its trials, how many asked, and how long one takes."""
    share = {"max_slots": 1}
    spec = StudySpec.model_validate(
        {"name": name, "objective": OBJECTIVE, "share": share, **fields}
    )
    submit(spec, fleet.settings)
    fleet.wait(name)
    trials = StudyHandle(name, fleet.settings).study.get_trials(deepcopy=False)
    client = connect(fleet.settings, Role.USER)
    asked = sum(bool(client.hexists(keys.trial(name, trial.number), "asked")) for trial in trials)
    client.close()
    seconds = [busy_seconds(trial) for trial in trials]
    return {
        "trials": len(trials),
        "trials_that_asked": asked,
        "median_ms": round(1000 * statistics.median(seconds), 2),
    }


def measure(folder: Path, trials: int, sampler: Mapping[str, Any]) -> dict[str, Any]:
    """Both kinds of study, one after the other in one fleet."""
    fleet = BenchFleet(folder, slots=1, objective=OBJECTIVE)
    fleet.start()
    try:
        return {
            name: run_study(fleet, name, trials=trials, sampler=sampler, space=space)
            for name, space in (("with_space", SPACE), ("without_space", {}))
        }
    finally:
        fleet.stop()


def main() -> None:
    """Measure, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--sampler", default="random", help="by its name")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trialfleet-") as folder:
        found = measure(Path(folder), arguments.trials, {"type": arguments.sampler})
    print(json.dumps({"bench": "defined_by_run", "sampler": arguments.sampler, **found}))


if __name__ == "__main__":
    main()
