#!/usr/bin/env python
"""How long a fleet needs to notice a loss and go on, with the default times.

- `child_idle_slot`: a pool process is SIGKILLed in training while another slot is idle;
- `child_only_slot`: the same where the replacement must start first (it imports torch);
- `host`: a whole worker is SIGKILLed on another host (another host name, so that nobody there sees
  it);
- `drain`: SIGTERM to a worker, to the checkpoint being on disk.

After a death, `running` is when the trial is claimed again, `training` when it makes a step.
Prints one JSON line: the median and the worst of each, in seconds.

    sudo python ops/bench/recovery.py --repeats 5
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from bench_fleet import BenchFleet, make_study

from orchestrator.local.servers import start_process, stop_process
from workers.coordination.connection import connect
from workers.coordination.rights import Role
from workers.processes.registry import ProcessEntry, ProcessRegistry

#: Long enough to be killed in the middle, and to be over soon after.
EPOCHS = 16


class Stand:
    """A fleet, and what its logs say about it."""

    def __init__(self, fleet: BenchFleet) -> None:
        self.fleet = fleet
        self.client = connect(fleet.settings, Role.USER)
        self._registry = ProcessRegistry(self.client, fleet.settings.times)
        self._num_studies = 0

    def submit(self) -> str:
        """One more study of one trial."""
        self._num_studies += 1
        name = f"recovery-{self._num_studies}"
        make_study(name, 1, epochs=EPOCHS).submit(self.fleet.settings)
        return name

    def holder(self, study: str) -> ProcessEntry | None:
        """The process that runs a study's trial."""
        return next((entry for entry in self._registry.entries() if entry.study == study), None)

    def idle(self) -> list[ProcessEntry]:
        """Pool processes that run nothing."""
        entries = self._registry.entries()
        return [entry for entry in entries if entry.kind == "trial" and entry.study is None]

    def events(self, name: str, study: str) -> list[float]:
        """When something was logged about a study, by `time.time`."""
        found = []
        for path in (self.fleet.settings.home / "logs").glob("worker*.log"):
            for line in path.read_text().splitlines():
                if f'"event": "{name}"' in line and f'"study": "{study}"' in line:
                    stamp = json.loads(line)["timestamp"].replace("Z", "+00:00")
                    found.append(datetime.fromisoformat(stamp).timestamp())
        return sorted(found)

    def await_event(self, name: str, study: str, after: float) -> float:
        """When the first event after some moment was logged."""
        return float(
            until(lambda: next((at for at in self.events(name, study) if at > after), 0.0), name)
        )

    def await_next_attempt(self, study: str, killed_at: float) -> dict[str, float]:
        """Seconds from a death to the claim, and to the first step."""
        training = self.await_event("first_training_step", study, killed_at)
        claimed = self.await_event("claimed", study, killed_at)
        return {"running": claimed - killed_at, "training": training - killed_at}

    def await_training(self, study: str) -> ProcessEntry:
        """The holder of a trial that has saved a checkpoint."""
        self.await_event("checkpoint_saved", study, 0.0)
        holder = self.holder(study)
        assert holder is not None  # noqa: S101 - it trains
        return holder


def until(condition: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
    """Wait for a condition; what it answered."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)
    return answer


def child_death(stand: Stand, *, idle_slots: int) -> dict[str, float]:
    """Kill the process of a trial in training, with so many slots idle beside it."""
    study = stand.submit()
    holder = stand.await_training(study)
    until(lambda: len(stand.idle()) == idle_slots, "the other slots are there")
    killed_at = time.time()
    os.kill(holder.identity.pid, signal.SIGKILL)
    found = stand.await_next_attempt(study, killed_at)
    stand.fleet.wait(study)
    return found


def host_loss(stand: Stand) -> dict[str, float]:
    """Kill a worker on another host, whole, while it trains."""
    fleet = stand.fleet
    fleet.worker.stop(30.0)
    log = fleet.settings.home / "logs" / "worker-elsewhere.log"
    celery = f"exec {sys.executable} -m celery -A workers worker --loglevel INFO"
    with log.open("ab") as sink:
        elsewhere = start_process(
            ["unshare", "--uts", "sh", "-c", f"hostname elsewhere && {celery}"],
            env=fleet.environment,
            stdin=subprocess.DEVNULL,
            output=sink,
        )
    study = stand.submit()
    stand.await_training(study)
    fleet.worker.start()
    until(stand.idle, "a slot is there on this host")
    tree = [psutil.Process(elsewhere.pid), *psutil.Process(elsewhere.pid).children(recursive=True)]
    killed_at = time.time()
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    found = stand.await_next_attempt(study, killed_at)
    stop_process(elsewhere, signal.SIGKILL, 5.0)
    fleet.wait(study)
    return found


def drain(stand: Stand) -> dict[str, float]:
    """Have a worker drain while it trains."""
    study = stand.submit()
    stand.await_training(study)
    told_at = time.time()
    os.kill(stand.fleet.worker.pid, signal.SIGTERM)
    stand.await_event("released", study, told_at)
    saved = [at for at in stand.events("checkpoint_saved", study) if at > told_at]
    until(lambda: stand.fleet.worker.poll() is not None, "the worker ends")
    stand.fleet.wait(study)
    return {"saved": saved[-1] - told_at}


def summary(name: str, measured: list[dict[str, float]]) -> dict[str, float]:
    """The median and the worst of each figure."""
    result = {}
    for figure in measured[0]:
        values = [each[figure] for each in measured]
        result[f"{name}_{figure}_median"] = round(statistics.median(values), 2)
        result[f"{name}_{figure}_worst"] = round(max(values), 2)
    return result


def measure(repeats: int) -> dict[str, Any]:
    """All four, each on fleets of their own."""
    result: dict[str, Any] = {"bench": "recovery", "repeats": repeats}
    for name, slots, call in (
        ("child_idle_slot", 2, lambda stand: child_death(stand, idle_slots=1)),
        ("child_only_slot", 1, lambda stand: child_death(stand, idle_slots=0)),
        ("drain", 1, drain),
        ("host", 1, host_loss),
    ):
        if name == "host" and os.getuid() != 0:
            print("host: left out; only root may give a process another host name", file=sys.stderr)
            continue
        home = Path(tempfile.mkdtemp(prefix="trialfleet-recovery-"))
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, home, ignore_errors=True)
            fleet = BenchFleet(home, slots=slots)
            stack.callback(shutil.rmtree, fleet.temporary, ignore_errors=True)
            stack.callback(fleet.stop)
            fleet.start()
            stand = Stand(fleet)
            stack.callback(stand.client.close)
            measured = []
            for _ in range(repeats if name != "host" else max(1, repeats // 2)):
                measured.append(call(stand))
                print(f"{name}: {measured[-1]}", file=sys.stderr, flush=True)
            result |= summary(name, measured)
    return result


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="of each loss; of a host, half")
    print(json.dumps(measure(parser.parse_args().repeats)))


if __name__ == "__main__":
    main()
