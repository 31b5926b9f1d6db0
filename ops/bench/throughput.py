#!/usr/bin/env python
"""How many trials of an objective that does nothing a second, beside what its parts do alone.

All sides run one after the other on the same machine, with the same server and the same settings
of it (append-only file, fsync every second), each in a folder of its own:

- `trialfleet`: `serve` and a `celery worker` of two slots; five float parameters, random sampler,
  every trial durable: in the journal and fsynced before a worker hears of it, and when it ended;
- `celery`: two processes of a plain worker on a task that does nothing, acknowledged late, with as
  many in flight as the fleet has;
- `optuna_redis`: two processes of plain Optuna on its own Redis journal, five float parameters,
  random; `optuna_postgres`, with `--postgres URL`, the same on an empty database;
- `ray_reuse`, with `--peers ENV`, an environment that has Ray Tune: two of its actors, used again.

Prints one JSON line: trials a second of each side, versions, and what a turn of ours costs where.

    python ops/bench/throughput.py --seconds 20
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import optuna
import psutil
from bench_fleet import BenchFleet
from nothing import PARAMETERS

from orchestrator.handle import StudyHandle
from orchestrator.local.servers import EmbeddedRedis, stop_process
from orchestrator.status import StudyStatus
from orchestrator.submission.study import Study

HERE: Final = Path(__file__).parent
SLOTS: Final = 2


def run_fleet(folder: Path, seconds: float) -> dict[str, Any]:
    """Our side: trials a second while the study runs, and what its processes use."""
    objective = f"{HERE / 'nothing.py'}:objective"
    fleet = BenchFleet(folder, slots=SLOTS, objective=objective, log_level="info")
    fleet.start()
    try:
        handle = submit_nothing(objective, fleet)
        begin = await_trials(handle, 200)
        processes = processes_of(fleet)
        (orchestrator,) = processes["orchestrator"]
        before, start = {name: cpu(each) for name, each in processes.items()}, time.monotonic()
        time.sleep(seconds)
        wall = time.monotonic() - start
        used = {name: cpu(each) - before[name] for name, each in processes.items()}
        end = handle.status()
        assert begin.as_of is not None and end.as_of is not None  # noqa: S101, PT018 - it is driven
        done = end.num_ended - begin.num_ended
        return {
            "trials_per_second": round(done / (end.as_of - begin.as_of), 1),
            "trials": end.num_ended,
            "cpu_ms_per_trial": {
                name: round(1000 * each / max(1, done), 2) for name, each in used.items()
            },
            "cpu_share": {name: round(each / wall, 2) for name, each in used.items()},
            "orchestrator_rss_mb": round(orchestrator.memory_info().rss / 2**20),
        }
    finally:
        fleet.stop()


def submit_nothing(objective: str, fleet: BenchFleet) -> StudyHandle:
    """A study that nobody sees the end of."""
    study = Study(
        objective,
        name="nothing",
        direction="minimize",
        trials=10**6,
        sampler={"type": "random", "seed": 1},
        space={name: {"type": "float", "low": 0.0, "high": 1.0} for name in PARAMETERS},
    )
    study.submit(fleet.settings)
    return StudyHandle("nothing", fleet.settings)


def processes_of(fleet: BenchFleet) -> dict[str, list[psutil.Process]]:
    """The processes of a fleet, by their part in it."""
    children = psutil.Process(fleet.worker.pid).children(recursive=True)
    return {
        "orchestrator": [psutil.Process(fleet.candidates()["orchestrator"][0])],
        "redis": [psutil.Process(fleet.redis.pid)],
        "main": [psutil.Process(fleet.worker.pid)],
        "slots": [each for each in children if "billiard.spawn" in " ".join(each.cmdline())],
    }


def await_trials(handle: StudyHandle, number: int) -> StudyStatus:
    """The status as soon as so many trials have ended."""
    while True:
        status = handle.status()
        if status.num_ended >= number:
            return status
        time.sleep(0.1)


def cpu(processes: list[psutil.Process]) -> float:
    """Seconds of processor time that processes have used."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def run_celery(folder: Path, seconds: float) -> dict[str, Any]:
    """Plain Celery: tasks a second, with as many in flight as it is given."""
    with EmbeddedRedis(folder) as server:
        environment = {**os.environ, "BENCH_BROKER": server.url, "PYTHONPATH": str(HERE)}
        command = [sys.executable, "-m", "celery", "-A", "plain_celery", "worker", "-c", str(SLOTS)]
        with (folder / "worker.log").open("wb") as sink:
            worker = subprocess.Popen(
                [*command, "--loglevel", "WARNING"], env=environment, stdout=sink, stderr=sink
            )
        try:
            output = subprocess.run(
                [sys.executable, HERE / "plain_celery.py", str(seconds)],
                env=environment,
                check=True,
                capture_output=True,
            ).stdout
        finally:
            stop_process(worker, signal.SIGTERM, 30.0)  # now and then it does not end by itself
        return dict(json.loads(output))


def run_optuna(folder: Path, seconds: float) -> dict[str, Any]:
    """Two processes of plain Optuna on one Redis journal."""
    with EmbeddedRedis(folder) as server:
        return optimize_at(server.url, seconds)


def optimize_at(url: str, seconds: float) -> dict[str, Any]:
    """Two processes of plain Optuna on one storage."""
    command = [sys.executable, str(HERE / "plain_optuna.py"), url, str(seconds)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(SLOTS)]
    done = [json.loads(process.communicate()[0]) for process in running]
    return {"trials_per_second": round(sum(each["trials"] / each["seconds"] for each in done), 1)}


def run_ray(environment: Path, seconds: float) -> dict[str, Any]:
    """Ray Tune with actors that are used again: as many trials as 20 a second would be."""
    command = [str(environment / "bin" / "python"), str(HERE / "ray_tune.py")]
    output = subprocess.run(
        [*command, str(int(20 * seconds)), "0", str(SLOTS), "reuse"],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    ).stdout
    found = json.loads(output.splitlines()[-1])
    return {name: found[name] for name in ("trials_per_second", "ray")}


SIDES: Final = {"trialfleet": run_fleet, "celery": run_celery, "optuna_redis": run_optuna}


def main() -> None:
    """Run the sides and print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each side runs")
    parser.add_argument("--sides", default=",".join(SIDES), help="which, separated by commas")
    parser.add_argument("--postgres", metavar="URL", help="an empty database, for plain Optuna")
    parser.add_argument("--peers", type=Path, help="an environment that has Ray Tune")
    arguments = parser.parse_args()
    sides = arguments.sides.split(",")
    if unknown := [side for side in sides if side not in SIDES]:
        parser.error(f"--sides {arguments.sides}: {unknown} are none; there are {', '.join(SIDES)}")
    found: dict[str, Any] = {}
    for side in sides:
        with tempfile.TemporaryDirectory(prefix="trialfleet-") as folder:
            found[side] = SIDES[side](Path(folder), arguments.seconds)
    if arguments.postgres is not None:
        optuna.storages.RDBStorage(arguments.postgres)  # two that make its tables at once fail
        found["optuna_postgres"] = optimize_at(arguments.postgres, arguments.seconds)
    if arguments.peers is not None:
        found["ray_reuse"] = run_ray(arguments.peers, arguments.seconds)
    packages = ("trialfleet", "celery", "optuna", "redis")
    found["versions"] = {name: version(name) for name in packages}
    print(json.dumps({"bench": "throughput", "cores": psutil.cpu_count(), **found}))


if __name__ == "__main__":
    main()
