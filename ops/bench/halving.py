#!/usr/bin/env python
"""What successive halving that promotes finds, and what it costs, beside the pruner that stops.

Three studies of the same trials (random sampler, the same seeds) run one after the other on one
fleet of two slots: `promotes` (asha with `promote`), `stops` (Optuna's own asha), and `none`, where
each trial trains to its end. Each trial is a small training of 27 epochs (`curves.py`), rungs at 1,
3 and 9.

Prints one JSON line: of each the best value (the lower, the better), the slot-seconds that its
trials held, the epochs that were trained, and how many trials were complete; the means over the
seeds, and each seed.

    python ops/bench/halving.py --trials 54 --seeds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from bench_fleet import BenchFleet
from curves import EPOCHS

from orchestrator.handle import StudyHandle
from orchestrator.submission.study import Study

OBJECTIVE: Final = f"{Path(__file__).with_name('curves.py')}:objective"
FACTOR: Final = 3

#: The seed of a study that is not counted.
WARM_UP: Final = -1

PRUNERS: Final[dict[str, dict[str, Any]]] = {
    "promotes": {
        "type": "asha",
        "promote": True,
        "reduction_factor": FACTOR,
        "max_resource": EPOCHS,
    },
    "stops": {"type": "asha", "min_resource": 1, "reduction_factor": FACTOR},
    "none": {"type": "none"},
}

SPACE: Final = {
    "width": {"type": "int", "low": 4, "high": 64, "log": True},
    "learning_rate": {"type": "float", "low": 1e-4, "high": 1.0, "log": True},
    "momentum": {"type": "float", "low": 0.0, "high": 0.95},
}


def run(fleet: BenchFleet, pruner: str, trials: int, seed: int) -> dict[str, float]:
    """One study: what it found and what it cost."""
    name = "warm-up" if seed == WARM_UP else f"{pruner}-{seed}"
    study = Study(
        OBJECTIVE,
        name=name,
        direction="minimize",
        trials=trials,
        sampler={"type": "random", "seed": max(seed, 0)},
        pruner=PRUNERS[pruner],
        space=SPACE,
    )
    study.submit(fleet.settings)
    status = fleet.wait(name)
    stored = StudyHandle(name, fleet.settings).study.trials
    return {
        "best": float("inf") if status.best is None else float(status.best.value or 0.0),
        "slot_seconds": sum(each.user_attrs.get("trialfleet:slot_seconds", 0.0) for each in stored),
        "epochs": sum(len(each.intermediate_values) for each in stored),
        "complete": status.trials["complete"],
    }


def main() -> None:
    """Measure, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=54)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {pruner: [] for pruner in PRUNERS}
    with tempfile.TemporaryDirectory() as folder:
        fleet = BenchFleet(Path(folder), objective=OBJECTIVE)
        fleet.start()
        try:
            run(fleet, "none", 4, WARM_UP)  # both slots have imported all by then
            for seed in range(arguments.seeds):
                for pruner, rows in found.items():
                    rows.append(run(fleet, pruner, arguments.trials, seed))
                    print(pruner, seed, rows[-1], file=sys.stderr, flush=True)
        finally:
            fleet.stop()
    means = {
        pruner: {name: round(statistics.mean(row[name] for row in rows), 5) for name in rows[0]}
        for pruner, rows in found.items()
    }
    versions = {name: version(name) for name in ("optuna", "torch")}
    print(
        json.dumps(
            {"trials": arguments.trials, "mean": means, "seeds": found, "versions": versions}
        )
    )


if __name__ == "__main__":
    main()
