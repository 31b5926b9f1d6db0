#!/usr/bin/env python
"""Where the milliseconds of a trial that does nothing go: in the orchestrator and in a slot.

The fleet of `throughput.py` (two slots, five float parameters, random sampler, every trial
durable), with the orchestrator in this process. Timed are, here, asking, journal, enqueuing,
hints, telling and the status; in the pool processes, from the objective's import on, the message,
the claim, the objective, the commit and what is done after it (`nothing_timed.py`). What a phase
calls of another one counts for that one alone.

Prints one JSON line: of each phase its wall and its processor time a trial, in ms.

    python ops/bench/phases.py --seconds 20
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import psutil
from bench_fleet import BenchFleet
from nothing_timed import PHASES_VARIABLE
from phase_clock import PhaseClock
from throughput import SLOTS, submit_nothing

from orchestrator.driving.collector import Collector
from orchestrator.driving.dispatch import Dispatcher
from orchestrator.driving.driven import DrivenStudy
from orchestrator.driving.publication import Publication
from orchestrator.driving.service import Service
from orchestrator.local.servers import LocalWorker
from orchestrator.storage.gathering import GatheringJournal
from workers.coordination.inbox import Inbox
from workers.coordination.leases import TrialLeases
from workers.logs import configure_logging

#: Before anything is timed.
WARM_UP_TRIALS: Final = 300

ORCHESTRATOR: Final = (
    (Dispatcher, "_draw", "ask"),
    (Dispatcher, "ask", "dispatch"),
    (GatheringJournal, "sync", "journal"),
    (GatheringJournal, "_append_waiting", "journal"),
    (TrialLeases, "enqueue_all", "enqueue"),
    (DrivenStudy, "send_hint", "hint"),
    (Collector, "collect", "tell"),
    (Inbox, "acknowledge", "acknowledge"),
    (Publication, "publish", "status"),
)


def run(fleet: BenchFleet, phases: Path, seconds: float) -> dict[str, Any]:
    """What each phase took, a trial."""
    clock = PhaseClock()
    for owner, name, phase in ORCHESTRATOR:
        clock.watch(owner, name, phase)
    objective = f"{Path(__file__).with_name('nothing_timed.py')}:objective"
    handle = submit_nothing(objective, fleet)
    with Service(fleet.settings) as service:
        while (status := service.status(handle.name)) is None or status.num_ended < WARM_UP_TRIALS:
            service.turn()
        clock.reset()
        slots_before, ended, process = of_slots(phases), status.num_ended, psutil.Process()
        cpu, begun = sum(process.cpu_times()[:2]), time.monotonic()
        while time.monotonic() - begun < seconds:
            service.turn()
        wall, used = time.monotonic() - begun, sum(process.cpu_times()[:2]) - cpu
        status, spent, slots = service.status(handle.name), clock.spent(), of_slots(phases)
    assert status is not None  # noqa: S101 - it was there before
    trials = status.num_ended - ended
    in_slots = {
        phase: [
            now - was for now, was in zip(each, slots_before.get(phase, [0, 0, 0]), strict=True)
        ]
        for phase, each in slots.items()
    }
    return {
        "trials_per_second": round(trials / wall, 1),
        "orchestrator_cpu_ms": round(1000 * used / trials, 2),
        "orchestrator": per_trial(spent, trials),
        "slots": per_trial(in_slots, in_slots["commit"][0]),
    }


def of_slots(phases: Path) -> dict[str, list[float]]:
    """What all pool processes have written down that they spent."""
    found: dict[str, list[float]] = {}
    for path in phases.glob("*.json"):
        for phase, each in json.loads(path.read_text())[1].items():
            before = found.get(phase, [0, 0, 0])
            found[phase] = [one + other for one, other in zip(before, each, strict=True)]
    return found


def per_trial(spent: dict[str, list[float]], trials: float) -> dict[str, dict[str, float]]:
    """In ms."""
    return {
        phase: {"wall_ms": round(1000 * wall / trials, 3), "cpu_ms": round(1000 * cpu / trials, 3)}
        for phase, (_, wall, cpu) in sorted(spent.items(), key=lambda each: -each[1][1])
    }


def main() -> None:
    """Measure, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="how long it is timed")
    arguments = parser.parse_args()
    configure_logging(level=logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="trialfleet-") as folder:
        objective = f"{Path(__file__).with_name('nothing_timed.py')}:objective"
        fleet = BenchFleet(Path(folder), slots=SLOTS, objective=objective, log_level="info")
        phases = Path(folder) / "phases"
        phases.mkdir()
        environment = {**fleet.environment, PHASES_VARIABLE: str(phases)}
        fleet.worker = LocalWorker(environment, Path(folder) / "logs" / "worker.log")
        fleet.redis.start()
        fleet.worker.start()
        try:
            found = run(fleet, phases, arguments.seconds)
        finally:
            fleet.stop()
    print(json.dumps({"bench": "phases", "cores": psutil.cpu_count(), **found}))


if __name__ == "__main__":
    main()
