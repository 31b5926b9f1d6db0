#!/usr/bin/env python
"""How soon a study that trains on two slots obeys `pause` and `cancel`.

A real fleet with the default times. Each is asked at random moments, `--times` often: after how
long `status` tells of it, and after how long no trial runs any more. A trial hears of it with the
next renewal of its lease, at most a beat (10 s) later.

Prints one JSON line.

    python ops/bench/obeyed.py --times 10
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import psutil
import redis
from bench_fleet import BenchFleet, make_study

from orchestrator.handle import StudyHandle
from workers.coordination.studies import Studies

SLOTS: Final = 2
GIVE_UP_SECONDS: Final = 300.0


def seconds_until(condition: Callable[[], bool]) -> float:
    """How long it takes from now on.

    Raises:
        TimeoutError: Longer than five minutes.
    """
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > GIVE_UP_SECONDS:
            raise TimeoutError
        time.sleep(0.01)
    return time.monotonic() - start


def is_in(handle: StudyHandle, states: set[str]) -> bool:
    """Whether the status says that the study is in one of them."""
    return handle.status().state in states


def measure(fleet: BenchFleet, times: int) -> dict[str, Any]:
    """Ask for one and the other."""
    client = redis.Redis.from_url(fleet.redis.url, decode_responses=True)
    handle = StudyHandle("obeys", fleet.settings)
    make_study("obeys", 10**6, epochs=10**4).submit(fleet.settings)
    leases = Studies(client).leases("obeys")
    pick = random.Random(1)
    asks = {"pause": handle.pause, "cancel": handle.cancel}
    wanted = {"pause": {"pausing", "paused"}, "cancel": {"cancelling", "cancelled"}}
    found: dict[str, dict[str, list[float]]] = {name: {"status": [], "trials": []} for name in asks}
    for turn in range(times * len(asks)):
        name = list(asks)[turn % len(asks)]
        seconds_until(lambda: len(leases.running()) == SLOTS)
        time.sleep(1.0 + 10.0 * pick.random())
        begun = time.monotonic()
        asks[name]()
        seconds_until(partial(is_in, handle, wanted[name]))
        found[name]["status"].append(time.monotonic() - begun)
        seconds_until(lambda: not leases.running())
        found[name]["trials"].append(time.monotonic() - begun)
        handle.resume()
    client.close()
    return {
        name: {what: summary(seconds) for what, seconds in each.items()}
        for name, each in found.items()
    }


def summary(seconds: list[float]) -> dict[str, float]:
    """The median and the highest, in seconds."""
    ordered = sorted(seconds)
    return {"median": round(ordered[len(ordered) // 2], 3), "max": round(ordered[-1], 3)}


def main() -> None:
    """Measure, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=10, help="how often each is asked")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trialfleet-") as folder:
        fleet = BenchFleet(Path(folder), slots=SLOTS, log_level="info")
        fleet.start()
        try:
            found = measure(fleet, arguments.times)
        finally:
            fleet.stop()
    print(json.dumps({"bench": "obeyed", "cores": psutil.cpu_count(), **found}))


if __name__ == "__main__":
    main()
