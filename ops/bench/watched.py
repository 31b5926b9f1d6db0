#!/usr/bin/env python
"""What it costs a fleet at full speed to be watched: its trials a second with and without.

Two fleets of two slots each stand on the same cores, and run an objective that does nothing by
turns: one that nobody looks at, and one that is watched by all there is at once: `trialfleet
watch`, `trialfleet events --follow`, a page of the study and one of the fleet that `trialfleet
dashboard` keeps up to date, and Prometheus, which asks its orchestrator and its worker every 15
seconds. The other fleet's study is paused meanwhile.

Prints one JSON line: trials a second of each, the share that is lost, the processor time that a
trial costs the fleet's own processes, and that which each watcher takes, in cores. On two cores
that the fleet fills, what watchers take is lost to it; on a host of their own, it is not.

    python ops/bench/watched.py --rounds 6
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import re
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psutil
from bench_fleet import BenchFleet
from throughput import await_trials, cpu, processes_of, submit_nothing

from orchestrator.local.servers import stop_process

_OBJECTIVE: Final = f"{Path(__file__).with_name('nothing.py')}:objective"
_PROGRAM: Final = str(Path(sys.executable).with_name("trialfleet"))
_TOKEN: Final = secrets.token_urlsafe()

#: As Prometheus asks by default of most set-ups, and as `ops/deploy` says.
_SCRAPE_SECONDS: Final = 15.0

#: A study that was resumed is at full speed after so long.
_SETTLE_SECONDS: Final = 3.0


class Side:
    """One fleet, whose study is paused but while it is measured."""

    def __init__(self, fleet: BenchFleet) -> None:
        self.fleet = fleet
        fleet.start()
        self.handle = submit_nothing(_OBJECTIVE, fleet)
        await_trials(self.handle, 200)
        self.handle.pause()
        self._processes = [each for part in processes_of(fleet).values() for each in part]
        self.rates: list[float] = []
        self.costs: list[float] = []

    def measure(self, seconds: float) -> None:
        """Run the study for so long, and note its trials a second, and what each costs the fleet.

        That is milliseconds of processor time of the fleet's own processes.
        """
        self.handle.resume()
        time.sleep(_SETTLE_SECONDS)
        begin, used = self.handle.status(), cpu(self._processes)
        time.sleep(seconds)
        end, used = self.handle.status(), cpu(self._processes) - used
        self.handle.pause()
        assert begin.as_of is not None and end.as_of is not None  # noqa: S101, PT018 - it is driven
        count = end.num_ended - begin.num_ended
        self.rates.append(count / (end.as_of - begin.as_of))
        self.costs.append(1000 * used / count)
        self._await_pause()

    def _await_pause(self) -> None:
        before = -1
        while before != (before := self.handle.status().num_ended):
            time.sleep(1.0)


@contextmanager
def watchers(side: Side) -> Iterator[dict[str, list[psutil.Process]]]:
    """All that may look at a fleet; their processes by name."""
    with ExitStack() as stack:
        found = {
            "watch": stack.enter_context(_in_a_terminal(side.fleet, "watch", "nothing")),
            "events": stack.enter_context(
                _in_a_terminal(side.fleet, "events", "nothing", "--follow")
            ),
            "dashboard": stack.enter_context(_dashboard(side.fleet)),
        }
        stack.enter_context(_repeated(_scrape(side.fleet), _SCRAPE_SECONDS))
        yield found


@contextmanager
def _in_a_terminal(fleet: BenchFleet, *command: str) -> Iterator[list[psutil.Process]]:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [_PROGRAM, *command],
        env={**fleet.environment, "TERM": "xterm-256color"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    reader = threading.Thread(target=_drain, args=(ours,), daemon=True)
    reader.start()
    try:
        yield [psutil.Process(process.pid)]
    finally:
        stop_process(process, signal.SIGINT, 10.0)
        reader.join(10.0)
        os.close(ours)


def _drain(descriptor: int) -> None:
    with suppress(OSError):  # the other side is closed
        while os.read(descriptor, 1 << 16):
            pass


@contextmanager
def _dashboard(fleet: BenchFleet) -> Iterator[list[psutil.Process]]:
    environment = {**fleet.environment, "FLEET_DASHBOARD_TOKEN": _TOKEN}
    command = [_PROGRAM, "dashboard", "--port", "0"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None  # noqa: S101 - it was asked for above
        address = server.stdout.readline().split()[1].partition("/#")[0]
        try:
            for path in ("/api/live", "/api/live?study=nothing&since=0"):
                threading.Thread(target=_follow, args=(address + path,), daemon=True).start()
            yield [psutil.Process(server.pid)]
        finally:
            server.terminate()


def _follow(address: str) -> None:
    """Take what a page would."""
    asked = urllib.request.Request(address, headers={"x-trialfleet-token": _TOKEN})  # noqa: S310
    with suppress(OSError), urllib.request.urlopen(asked) as answer:  # noqa: S310 - our own server
        while answer.read1(1 << 16):
            pass


def _scrape(fleet: BenchFleet) -> Callable[[], None]:
    logs = fleet.settings.home / "logs"
    found = [re.findall(r"http://[^\s\"]+/metrics", each.read_text()) for each in logs.iterdir()]
    urls = [url for each in found for url in each]
    assert len(urls) == 2, urls  # noqa: S101 - an orchestrator's and a worker's

    def scrape() -> None:
        for url in urls:
            with urllib.request.urlopen(url) as answer:  # noqa: S310 - our own server
                answer.read()

    return scrape


@contextmanager
def _repeated(act: Callable[[], None], seconds: float) -> Iterator[None]:
    stopped = threading.Event()

    def run() -> None:
        while not stopped.wait(seconds):
            act()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def run(folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure both sides by turns."""
    with ExitStack() as stack:
        sides = []
        for name, port in (("alone", None), ("watched", 0)):
            (folder / name).mkdir()
            fleet = BenchFleet(
                folder / name, objective=_OBJECTIVE, log_level="info", metrics_port=port
            )
            stack.callback(fleet.stop)
            sides.append(Side(fleet))
        alone, watched = sides
        used: dict[str, list[float]] = {}
        for number in range(rounds):
            for side in sides if number % 2 else reversed(sides):
                if side is alone:
                    alone.measure(seconds)
                    continue
                with watchers(watched) as found:
                    time.sleep(5.0)  # they have started
                    before, began = {name: cpu(each) for name, each in found.items()}, time.time()
                    watched.measure(seconds)
                    for name, each in found.items():
                        spent = (cpu(each) - before[name]) / (time.time() - began)
                        used.setdefault(name, []).append(spent)
            took = {name: round(each[-1], 3) for name, each in used.items()}
            told = [f"{each.rates[-1]:.1f} ({each.costs[-1]:.2f} ms a trial)" for each in sides]
            print(f"round {number + 1} of {rounds}: {told[0]} alone, {told[1]} watched; cores"
                  f" {took}", file=sys.stderr)  # fmt: skip
    rates = {"alone": alone.rates, "watched": watched.rates}
    medians = {name: statistics.median(each) for name, each in rates.items()}
    costs = {
        side: round(statistics.median(each), 2)
        for side, each in {"alone": alone.costs, "watched": watched.costs}.items()
    }
    return {
        "trials_per_second": {name: round(each, 1) for name, each in medians.items()},
        "all": {name: [round(rate, 1) for rate in each] for name, each in rates.items()},
        "lost": round(1 - medians["watched"] / medians["alone"], 3),
        "fleet_ms_per_trial": costs,
        "cores_used": {name: round(statistics.median(each), 3) for name, each in used.items()},
    }


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6, help="each measures both sides once")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each side runs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trialfleet-") as folder:
        found = run(Path(folder), arguments.rounds, arguments.seconds)
    print(json.dumps({"bench": "watched", "machine_cores": psutil.cpu_count(), **found}))


if __name__ == "__main__":
    main()
