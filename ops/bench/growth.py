#!/usr/bin/env python
"""What a trial costs the orchestrator, in a study that grows, and beside many studies.

The workers are one process that claims and commits by hand what is announced, so that all that is
timed is the orchestrator's. First one study grows to `--trials` (random sampler, five parameters),
and a trial's processor time is taken around the marks; then it is opened anew. Then `--studies`
studies wait for two slots, and the turns of the loop are timed once all are open and shown; and
some studies of different weights share them.

Prints one JSON line.

    python ops/bench/growth.py --trials 20000 --studies 1000
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil
import redis
from hand_slot import claimed
from nothing import PARAMETERS

from orchestrator.driving.service import Service
from orchestrator.local.servers import EmbeddedRedis
from workers.coordination.studies import Studies
from workers.logs import configure_logging
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.messages import Result
from workers.protocol.spec import StudySpec
from workers.protocol.states import ProcessKind, TrialState
from workers.settings import Settings

SLOTS: Final = 2

#: Trials around a mark over which its cost is taken.
WINDOW: Final = 500

#: Turns that are looked at together for whether they are as quick as they will be, and that are
#: then timed.
WARM_UP: Final = 40
TURNS: Final = 100


def work(settings: Settings, trial_seconds: float, ended: Event) -> None:
    """Be a worker of two slots, which together end a trial each `trial_seconds / SLOTS`."""
    client = redis.Redis.from_url(str(settings.redis_url), decode_responses=True)
    registry = ProcessRegistry(client, settings.times)
    fields = {"slots": SLOTS, "queues": ["default"]}
    record = ProcessRecord(registry, ProcessKind.MAIN, fields=fields)
    record.register()
    beat_at = time.monotonic()
    result = Result(values=[0.5], busy_seconds=trial_seconds)
    while not ended.is_set():
        if time.monotonic() - beat_at > settings.times.beat:
            record.beat()
            beat_at = time.monotonic()
        for leases, number, grant in claimed(client, settings):
            time.sleep(trial_seconds / SLOTS)
            leases.commit(number, grant.token, TrialState.COMPLETE, result)


@contextmanager
def worker(settings: Settings, trial_seconds: float) -> Iterator[None]:
    """Have such a worker beside."""
    ended = multiprocessing.get_context("spawn").Event()
    process = multiprocessing.get_context("spawn").Process(
        target=work, args=(settings, trial_seconds, ended)
    )
    process.start()
    try:
        yield
    finally:
        ended.set()
        process.join()


def submit(settings: Settings, name: str, trials: int, **fields: Any) -> None:
    """Hand a study in; nothing of it is checked."""
    dimension = {"type": "float", "low": 0.0, "high": 1.0}
    spec = StudySpec.model_validate(
        {
            "name": name,
            "objective": "nothing:objective",
            "trials": trials,
            "space": dict.fromkeys(PARAMETERS, dimension),
            "sampler": {"type": "random", "seed": 1},
            **fields,
        }
    )
    with redis.Redis.from_url(str(settings.redis_url), decode_responses=True) as client:
        Studies(client).submit(spec)


def num_trials(service: Service, name: str) -> int:
    """How many trials of a study have ended."""
    status = service.status(name)
    return 0 if status is None else status.num_ended


def measure_growth(settings: Settings, trials: int) -> dict[str, Any]:
    """One study that grows."""
    submit(settings, "grows", trials + WINDOW)
    marks = [mark for mark in (1000, 5000, 20000, 100000) if mark <= trials]
    cost: dict[str, float] = {}
    with worker(settings, 0.0), Service(settings) as service:
        for mark in marks:
            while num_trials(service, "grows") < mark - WINDOW:
                service.turn()
            before, begun = time.process_time(), num_trials(service, "grows")
            while num_trials(service, "grows") < mark:
                service.turn()
            done = num_trials(service, "grows") - begun
            cost[str(mark)] = round(1000 * (time.process_time() - before) / done, 3)
    rss = psutil.Process().memory_info().rss
    with redis.Redis.from_url(str(settings.redis_url)) as client:
        redis_bytes = client.info("memory")["used_memory_peak"]
    start = time.perf_counter()
    with Service(settings) as service:
        while service.status("grows") is None:
            service.turn()
        opened = time.perf_counter() - start
    return {
        "cpu_ms_per_trial": cost,
        "ratio": round(cost[str(marks[-1])] / cost[str(marks[0])], 2),
        "rss_mb": round(rss / 2**20),
        "redis_peak_mb": round(redis_bytes / 2**20, 1),
        "restart_seconds": round(opened, 2),
    }


def measure_many(settings: Settings, studies: int) -> dict[str, Any]:
    """Many studies that wait for two slots: how long turns take, without what they wait."""
    names = [f"many-{number:04}" for number in range(studies)]
    for name in names:
        submit(settings, name, 1000)
    with worker(settings, 0.2), Service(settings) as service:
        begun, latest = time.monotonic(), [math.inf]
        while any(service.status(name) is None for name in names):
            service.turn()
        opened = time.monotonic() - begun
        # all of them are new at once, which takes some turns more
        while len(latest) < WARM_UP or latest[-WARM_UP] > 2 * median(latest[-WARM_UP:]):
            latest.append(turn_cpu_ms(service))
        calm = time.monotonic() - begun
        turns = sorted(turn_cpu_ms(service) for _ in range(TURNS))
    return {
        "studies": studies,
        "seconds_to_open_all": round(opened, 1),
        "seconds_to_calm": round(calm, 1),
        "turns": TURNS,
        "turn_cpu_ms": {
            "median": round(turns[len(turns) // 2], 1),
            "p95": round(turns[int(len(turns) * 0.95)], 1),
            "max": round(turns[-1], 1),
        },
    }


def turn_cpu_ms(service: Service) -> float:
    """The processor time of one turn, its threads included."""
    before = time.process_time()
    service.turn()
    return 1000 * (time.process_time() - before)


def measure_shares(settings: Settings, studies: int, trials: int) -> dict[str, Any]:
    """Some studies of weights 1 to 4 on two slots: how far from its share each one is."""
    weights = {f"share-{number:02}": float(1 + number % 4) for number in range(studies)}
    for name, weight in weights.items():
        submit(settings, name, 10**6, share={"weight": weight})
    with worker(settings, 0.02), Service(settings) as service:

        def ended() -> dict[str, int]:
            return {name: num_trials(service, name) for name in weights}

        while sum(ended().values()) < trials:
            service.turn()
        found = ended()
    total, pull = sum(found.values()), sum(weights.values())
    off = {name: abs(found[name] * pull / (total * weight) - 1) for name, weight in weights.items()}
    return {"studies": studies, "trials": total, "worst_off": round(max(off.values()), 3)}


def main() -> None:
    """Measure, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20000, help="how far the one study grows")
    parser.add_argument("--studies", type=int, default=1000, help="how many wait for two slots")
    parser.add_argument("--parts", default="growth,shares,many", help="which, by commas")
    arguments = parser.parse_args()
    configure_logging(level=logging.WARNING)
    found: dict[str, Any] = {"bench": "growth", "cores": psutil.cpu_count()}
    parts: dict[str, Callable[[Settings], dict[str, Any]]] = {
        "growth": lambda settings: measure_growth(settings, arguments.trials),
        "shares": lambda settings: measure_shares(settings, 20, 2000),
        "many": lambda settings: measure_many(settings, arguments.studies),
    }
    for part in arguments.parts.split(","):
        measure = parts[part]
        with (
            tempfile.TemporaryDirectory(prefix="trialfleet-") as folder,
            EmbeddedRedis(Path(folder)) as server,
        ):
            found[part] = measure(Settings(redis_url=server.url, home=Path(folder) / "home"))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
