#!/usr/bin/env python
"""Which share of its slots' time a fleet trains, and how soon after its claim a trial does.

Trials of six seconds on two slots, each with a model of its own: `small`, drawn; and `base`, 110 M
parameters, read from a checkpoint (random weights of BERT-base's shape). The first trial of each
slot, which imports torch and reads the checkpoint, is the cold start, and counts in no share.

Prints one JSON line. `share` is the slots' time from claim to commit, `useful_share` that of the
seconds which the trials are to train, both of all time since the cold start; `first_step_ms` is
from the claim to the first step, warm. With `--peers ENV`, an environment that has Ray Tune, its
`useful_share` of as many trials that do nothing for as long, with actors used again and without.

    python ops/bench/goodput.py --trials 30 --seconds 6 --peers /opt/ray
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil
import torch
from bench_fleet import BenchFleet
from transformers import AutoConfig, AutoModelForSequenceClassification

from orchestrator.handle import StudyHandle
from orchestrator.storage.tally import busy_seconds
from orchestrator.submission.study import Study

SLOTS: Final = 2
OBJECTIVE: Final = f"{Path(__file__).with_name('paced.py')}:objective"
SMALL: Final = {"architecture": "bert", "hidden_size": 128, "num_hidden_layers": 2}


def run(home: Path, model: dict[str, Any], trials: int, seconds: float) -> dict[str, Any]:
    """One study by a fleet of its own."""
    fleet = BenchFleet(home, slots=SLOTS, objective=OBJECTIVE)
    fleet.start()
    try:
        study = Study(
            OBJECTIVE,
            name="goodput",
            direction="maximize",
            trials=trials,
            sampler={"type": "random", "seed": 1},
            space={"x": {"type": "float", "low": 0.0, "high": 1.0}},
            config={"model": model, "seconds": seconds},
        )
        study.submit(fleet.settings)
        fleet.wait("goodput")
        done = StudyHandle("goodput", fleet.settings).study.get_trials(deepcopy=False)
        busy = {trial.number: busy_seconds(trial) for trial in done}
        return figures(home / "logs", busy, seconds)
    finally:
        fleet.stop()


def figures(logs: Path, busy: dict[int, float], seconds: float) -> dict[str, Any]:
    """What the workers' logs, and how long each trial was held, tell."""
    lines = [
        json.loads(line)
        for path in logs.glob("worker*.log")
        for line in path.read_text().splitlines()
        if line.startswith("{")
    ]
    slots: defaultdict[int, list[tuple[float, int]]] = defaultdict(list)
    for line in lines:
        if line["event"] == "claimed":
            at = datetime.fromisoformat(line["timestamp"]).timestamp()
            slots[line["pid"]].append((at, line["trial"]))
    held = window = 0.0
    warm = 0
    for claims in slots.values():
        claims.sort()
        (began, first), *others = claims
        if others:
            last_at, last = claims[-1]
            window += last_at + busy[last] - (began + busy[first])
            held += sum(busy[number] for _, number in others)
            warm += len(others)
    steps = [line["seconds"] for line in lines if line["event"] == "first_training_step"]
    is_warm = [line["warm"] for line in lines if line["event"] == "first_training_step"]
    first_steps = [1000 * each for each, ok in zip(steps, is_warm, strict=True) if ok]
    return {
        "share": round(held / window, 4),
        "useful_share": round(warm * seconds / window, 4),
        "warm_trials": warm,
        "first_step_ms": {
            "median": round(statistics.median(first_steps), 1),
            "worst": round(max(first_steps), 1),
        },
    }


def save_base(folder: Path) -> dict[str, Any]:
    """A checkpoint of BERT-base's shape, and the section that names it."""
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert"))
    model.save_pretrained(folder)
    return {"id": str(folder)}


def run_ray(environment: Path, trials: int, seconds: float, mode: str) -> dict[str, Any]:
    """Ray Tune, in an environment of its own."""
    command = [environment / "bin" / "python", Path(__file__).with_name("ray_tune.py")]
    output = subprocess.run(
        [*command, str(trials), str(seconds), str(SLOTS), mode],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    ).stdout
    return dict(json.loads(output.splitlines()[-1]))


def main() -> None:
    """Run the sides and print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=6.0, help="how long each trains")
    parser.add_argument("--models", default="small,base", help="which, separated by commas")
    parser.add_argument("--peers", type=Path, help="an environment that has Ray Tune")
    given = parser.parse_args()
    line: dict[str, Any] = {"bench": "goodput", "slots": SLOTS}
    line |= {"trials": given.trials, "seconds": given.seconds}
    line["load_before"] = round(os.getloadavg()[0], 1)
    for name in given.models.split(","):
        with tempfile.TemporaryDirectory(prefix="trialfleet-") as folder:
            model = SMALL if name == "small" else save_base(Path(folder) / "base")
            line[name] = run(Path(folder) / "home", model, given.trials, given.seconds)
        print(f"{name}: {line[name]}", file=sys.stderr)
    if given.peers is not None:
        for mode in ("reuse", "fresh"):
            line[f"ray_{mode}"] = run_ray(given.peers, given.trials, given.seconds, mode)
    line["cores"] = psutil.cpu_count()
    line["versions"] = {"trialfleet": version("trialfleet"), "torch": torch.__version__}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
