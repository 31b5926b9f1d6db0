#!/usr/bin/env python
"""Whether a slow sampler of one study delays the answers that trials of another one wait for.

Two studies of objectives without a `space` are worked on by hand, each by a process: a trial asks
for its parameters and ends. What is timed is how long the orchestrator takes to answer a trial of
the one with a seeded random sampler, which asks for each parameter; first while that study is
alone, then beside one with `gp`, whose asks are timed, too.

Prints one JSON line.

    python ops/bench/slow_sampler.py --seconds 20
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

import psutil
import redis
from nothing import PARAMETERS
from optuna.distributions import FloatDistribution, distribution_to_json

from orchestrator.driving.aside_sampler import AsideSampler
from orchestrator.driving.service import Service
from orchestrator.local.servers import EmbeddedRedis
from workers.coordination.grants import Grant
from workers.coordination.leases import TrialLeases
from workers.coordination.studies import Studies
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.messages import Result
from workers.protocol.spec import StudySpec
from workers.protocol.states import ProcessKind, TrialState
from workers.settings import Settings

DISTRIBUTION: Final = distribution_to_json(FloatDistribution(0.0, 1.0))

#: Trials of `gp` from which on an ask of it takes long.
SLOW_FROM: Final = 12

#: After which a worker asks no more: the orchestrator has ended.
GIVE_UP_SECONDS: Final = 5.0


Waits: TypeAlias = list[tuple[float, float]]


class Hands:
    """Works on one study, trial after trial, in a process of its own."""

    def __init__(self, settings: Settings, study: str) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._ended = spawn.Event()
        self._waits, theirs = spawn.Pipe(duplex=False)
        self._process = spawn.Process(target=work, args=(settings, study, self._ended, theirs))

    def start(self) -> Self:
        """Begin."""
        self._process.start()
        return self

    def end(self) -> Waits:
        """End; of each answer when it came, by the monotonic clock, and after how many seconds."""
        self._ended.set()
        found: Waits = self._waits.recv()
        self._process.join()
        return found


def work(settings: Settings, study: str, ended: Event, waits: Connection) -> None:
    """Be a worker of one slot whose trials do nothing but ask."""
    client = redis.Redis.from_url(str(settings.redis_url), decode_responses=True)
    leases = Studies(client).leases(study)
    found: Waits = []
    while not ended.wait(0.002):
        for number in leases.queued():
            grant = leases.claim(number, "bench", 600.0)
            if isinstance(grant, Grant):
                run(leases, number, grant, found)
    waits.send(found)


def run(leases: TrialLeases, number: int, grant: Grant, found: Waits) -> None:
    """Ask for what was not drawn before, and end the trial."""
    drawn = dict(grant.record.drawn)
    for name in PARAMETERS:
        if name not in drawn:
            sent_at = time.monotonic()
            leases.suggest(number, grant.token, name, DISTRIBUTION)
            while leases.await_reply(number, grant.token, 1.0) is None:
                if time.monotonic() - sent_at > GIVE_UP_SECONDS:
                    return
            found.append((time.monotonic(), time.monotonic() - sent_at))
    values = [sum(each.value for each in drawn.values()) + number % 7]
    result = Result(values=values, params=drawn)
    leases.commit(number, grant.token, TrialState.COMPLETE, result)


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """The median, a high one and the highest, in ms, and how many there are."""
    found = sorted(1000 * each for each in seconds)
    at = {"median_ms": 0.5, "p95_ms": 0.95, "max_ms": 1.0}
    spread = {name: round(found[int((len(found) - 1) * part)], 1) for name, part in at.items()}
    return {"count": len(found), **spread}


def timed_gp() -> list[float]:
    """Have what `gp` draws timed from now on; the seconds of each."""
    seconds: list[float] = []
    draw = AsideSampler.sample_relative

    def timed(*arguments: Any) -> dict[str, Any]:
        start = time.perf_counter()
        try:
            return draw(*arguments)
        finally:
            seconds.append(time.perf_counter() - start)

    AsideSampler.sample_relative = timed  # type: ignore[method-assign, assignment]
    return seconds


def submit(settings: Settings, name: str, sampler: dict[str, Any]) -> None:
    """Hand a study in; nothing of it is checked."""
    spec = StudySpec.model_validate(
        {"name": name, "objective": "nothing:objective", "trials": 10**6, "sampler": sampler}
    )
    with redis.Redis.from_url(str(settings.redis_url), decode_responses=True) as client:
        Studies(client).submit(spec)


def measure(settings: Settings, seconds: float) -> dict[str, Any]:
    """Both sides, one after the other with one orchestrator."""
    with redis.Redis.from_url(str(settings.redis_url), decode_responses=True) as client:
        fields = {"slots": 2, "queues": ["default"]}
        registry = ProcessRegistry(client, settings.times.scaled(1e4))
        worker = ProcessRecord(registry, ProcessKind.MAIN, fields=fields)
        worker.identity = worker.identity._replace(pid=1)  # this process is the orchestrator
        worker.register()
        submit(settings, "quick", {"type": "random", "seed": 1})
        asks = timed_gp()
        with Service(settings) as service:
            quick = Hands(settings, "quick").start()
            turn_for(service, 3.0)  # the process starts
            alone = turn_for(service, seconds)
            submit(settings, "slow", {"type": "gp", "n_startup_trials": 5})
            slow = Hands(settings, "slow").start()
            while (status := service.status("slow")) is None or status.num_ended < SLOW_FROM:
                service.turn()
            asks.clear()
            beside = turn_for(service, seconds)
            waits = quick.end()
            slow.end()
    sides = {
        name: summary([wait for at, wait in waits if begin <= at <= end])
        for name, (begin, end) in {"alone": alone, "beside_gp": beside}.items()
    }
    return {**sides, "gp_asks": summary(asks)}


def turn_for(service: Service, seconds: float) -> tuple[float, float]:
    """Serve for a while; from when to when, by the monotonic clock."""
    begin = time.monotonic()
    while time.monotonic() < begin + seconds:
        service.turn()
    return begin, time.monotonic()


def main() -> None:
    """Measure, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="how long each side runs")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    with (
        tempfile.TemporaryDirectory(prefix="trialfleet-") as folder,
        EmbeddedRedis(Path(folder)) as server,
    ):
        settings = Settings(redis_url=server.url, home=Path(folder) / "home")
        found = measure(settings, arguments.seconds)
    print(json.dumps({"bench": "slow_sampler", "cores": psutil.cpu_count(), **found}))


if __name__ == "__main__":
    main()
