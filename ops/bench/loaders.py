#!/usr/bin/env python
"""How soon a trial makes its first step where loader processes read its rows: forked, and spawned.

Trials of two epochs with an evaluation each, on one slot with two loader processes, which the
server of the pool process forks, or which are spawned; in turns, by a fleet each. The first trial
of each fleet is the cold start, and counts in no figure but `cold_ms`.

Prints one JSON line. `first_step_ms` is from the claim to the first step, `trial_seconds` from the
claim to the commit, both the median; `are_values_equal` compares all trials' values to the bit.

    python ops/bench/loaders.py --trials 4 --rounds 2
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from bench_fleet import BenchFleet

from orchestrator.handle import StudyHandle
from orchestrator.storage.tally import busy_seconds
from orchestrator.submission.study import Study

#: The functions of `slow_rows.py`.
SIDES: Final = ("forked", "spawned")


def run(home: Path, side: str, trials: int) -> dict[str, list[float]]:
    """One study by a fleet of its own; what each warm trial took, and all values."""
    objective = f"{Path(__file__).with_name('slow_rows.py')}:{side}"
    fleet = BenchFleet(home, slots=1, objective=objective)
    fleet.start()
    try:
        study = Study(
            objective,
            name="loaders",
            trials=trials,
            sampler={"type": "random", "seed": 1},
            space={"lr": {"type": "float", "low": 1e-5, "high": 1e-4}},
        )
        study.submit(fleet.settings)
        fleet.wait("loaders")
        done = StudyHandle("loaders", fleet.settings).study.get_trials(deepcopy=False)
        return {
            "first_step_ms": first_steps(home / "logs", is_warm=True),
            "cold_ms": first_steps(home / "logs", is_warm=False),
            "trial_seconds": [busy_seconds(trial) for trial in done[1:]],
            "values": [trial.value for trial in done if trial.value is not None],
        }
    finally:
        fleet.stop()


def first_steps(logs: Path, *, is_warm: bool) -> list[float]:
    """Milliseconds from trials' claims to their first steps, as the workers' logs tell."""
    lines = [
        json.loads(line)
        for path in logs.glob("worker*.log")
        for line in path.read_text().splitlines()
        if line.startswith("{")
    ]
    steps = [line for line in lines if line["event"] == "first_training_step"]
    return [1000 * line["seconds"] for line in steps if line["warm"] is is_warm]


def main() -> None:
    """Run the sides in turns and print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=4, help="a study")
    parser.add_argument("--rounds", type=int, default=1, help="studies a side")
    given = parser.parse_args()
    line: dict[str, Any] = {"bench": "loaders", "trials": given.trials, "rounds": given.rounds}
    line["load_before"] = round(os.getloadavg()[0], 1)
    found: dict[str, defaultdict[str, list[float]]] = {side: defaultdict(list) for side in SIDES}
    for _ in range(given.rounds):
        for side in SIDES:
            with tempfile.TemporaryDirectory(prefix="trialfleet-") as folder:
                took = run(Path(folder) / "home", side, given.trials)
            for name, values in took.items():
                found[side][name] += values
            print(f"{side}: {took}", file=sys.stderr)
    for side, took_all in found.items():
        line[side] = {
            "first_step_ms": round(statistics.median(took_all["first_step_ms"]), 1),
            "cold_ms": round(statistics.median(took_all["cold_ms"]), 1),
            "trial_seconds": round(statistics.median(took_all["trial_seconds"]), 2),
        }
    line["are_values_equal"] = found["forked"]["values"] == found["spawned"]["values"]
    line["cores"] = psutil.cpu_count()
    line["versions"] = {"trialfleet": version("trialfleet"), "torch": torch.__version__}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
