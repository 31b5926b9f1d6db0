#!/usr/bin/env python
"""How many slots of one-second trials one orchestrator can feed from a study with TPE.

For each engine (Optuna's TPE, and `engine: rust`) a study of `--trials` complete trials, five
parameters, is driven by a real `Service`. The workers are threads of one process that claim and
commit by hand what is announced. First `--slots` of them run trials of one second: what share of
its time a slot waits for the next trial. Then one takes trials that end at once: how many a second
the orchestrator hands out, which is how many such slots it could feed, and what an ask takes.

Prints one JSON line.

    python ops/bench/feeding.py --trials 5000 --seconds 30
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import random
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import median
from typing import Any, Final

import optuna
import psutil
import redis
from hand_slot import claimed
from nothing import PARAMETERS

from orchestrator.driving.driven import DrivenStudy
from orchestrator.driving.service import Service
from orchestrator.local.servers import EmbeddedRedis
from orchestrator.storage.opening import StudyStorage, storage_url
from workers.coordination.studies import Studies
from workers.logs import configure_logging
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.messages import Result
from workers.protocol.spec import StudySpec
from workers.protocol.states import ProcessKind, TrialState
from workers.settings import Settings

#: Trials a slot, and in all, before anything is timed: a study that is resumed is read first.
WARM_UP_TRIALS: Final = 4

ENGINES: Final = {"optuna": {}, "rust": {"engine": "rust"}}


class Slots:
    """A process whose threads are the slots of a worker; each notes how long it waited."""

    def __init__(self, settings: Settings, slots: int, trial_seconds: float) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._ended = spawn.Event()
        self._waits, theirs = spawn.Pipe(duplex=False)
        self._process = spawn.Process(
            target=work, args=(settings, slots, trial_seconds, self._ended, theirs)
        )
        self._process.start()

    def end(self) -> list[tuple[float, float]]:
        """End them; when each wait was over, by the monotonic clock, and its seconds."""
        self._ended.set()
        found: list[tuple[float, float]] = self._waits.recv()
        self._process.join()
        return found


def work(
    settings: Settings, slots: int, trial_seconds: float, ended: Event, waits: Connection
) -> None:
    """Be a worker of some slots."""
    client = redis.Redis.from_url(str(settings.redis_url), decode_responses=True)
    registry = ProcessRegistry(client, settings.times.scaled(100))
    fields = {"slots": slots, "queues": ["default"]}
    record = ProcessRecord(registry, ProcessKind.MAIN, fields=fields)
    record.register()
    found: list[tuple[float, float]] = []
    threads = [
        threading.Thread(target=be_slot, args=(client, settings, trial_seconds, ended, found))
        for _ in range(slots)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record.gone()
    waits.send(found)


def be_slot(
    client: redis.Redis,
    settings: Settings,
    trial_seconds: float,
    ended: Event,
    found: list[tuple[float, float]],
) -> None:
    """Run trials, one after the other."""
    free_at = time.monotonic()
    while not ended.is_set():
        for leases, number, grant in claimed(client, settings):
            found.append((time.monotonic(), time.monotonic() - free_at))
            time.sleep(trial_seconds)
            value = sum(grant.record.params.values())
            result = Result(values=[value], busy_seconds=max(0.001, trial_seconds))
            leases.commit(number, grant.token, TrialState.COMPLETE, result)
            free_at = time.monotonic()


def prepare(settings: Settings, engine: str, trials: int) -> str:
    """Hand a study in that has so many trials; its name."""
    name = f"tpe-{engine}"
    dimension = {"type": "float", "low": 0.0, "high": 1.0}
    spec = StudySpec.model_validate(
        {
            "name": name,
            "objective": "nothing:objective",
            "trials": 10**6,
            "space": dict.fromkeys(PARAMETERS, dimension),
            "sampler": {"type": "tpe", "seed": 1, **ENGINES[engine]},
        }
    )
    with redis.Redis.from_url(str(settings.redis_url), decode_responses=True) as client:
        Studies(client).submit(spec)
    with Service(settings) as service:  # nobody works: it is opened, and nothing is asked for
        while service.status(name) is None:
            service.turn()
    drawn = random.Random(1)
    distribution: dict[str, optuna.distributions.BaseDistribution] = {
        each: optuna.distributions.FloatDistribution(0.0, 1.0) for each in PARAMETERS
    }
    storage = StudyStorage.open(storage_url(settings, name))
    study = optuna.load_study(study_name=name, storage=storage.storage)
    points = [{each: drawn.random() for each in PARAMETERS} for _ in range(trials)]
    study.add_trials(
        [
            optuna.trial.create_trial(
                params=point, distributions=distribution, value=sum(point.values())
            )
            for point in points
        ]
    )
    storage.close()
    return name


def timed_asks() -> list[float]:
    """Have asks be timed from now on; the seconds of each."""
    seconds: list[float] = []
    ask = DrivenStudy.ask

    def timed(study: DrivenStudy) -> optuna.Trial:
        start = time.perf_counter()
        trial = ask(study)
        for each in PARAMETERS:  # drawn here, since they are drawn together when first asked for
            trial.suggest_float(each, 0.0, 1.0)
        seconds.append(time.perf_counter() - start)
        return trial

    DrivenStudy.ask = timed  # type: ignore[method-assign, assignment]
    return seconds


def run_for(service: Service, seconds: float) -> None:
    """Turn the loop for so long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        service.turn()


def warm_up(service: Service, name: str, trials: int) -> None:
    """Turn the loop until so many more trials have ended."""
    while service.status(name) is None:
        service.turn()
    before = num_ended(service, name)
    while num_ended(service, name) < before + trials:
        service.turn()


def measure(settings: Settings, engine: str, trials: int, slots: int, seconds: float) -> Any:
    """One engine."""
    name, asks = prepare(settings, engine, trials), timed_asks()
    with Service(settings) as service:
        paced = Slots(settings, slots, 1.0)
        warm_up(service, name, WARM_UP_TRIALS * slots)
        begun = time.monotonic()
        run_for(service, seconds)
        waits = [wait for at, wait in paced.end() if at > begun]
        run_for(service, 1.0)
        eager = Slots(settings, 1, 0.0)
        warm_up(service, name, WARM_UP_TRIALS)
        asks.clear()
        ended = num_ended(service, name)
        run_for(service, seconds)
        fed = (num_ended(service, name) - ended) / seconds
        eager.end()
    return {
        "waits": {"share": round(share(waits), 4), "max_ms": round(1000 * max(waits), 1)},
        "ask_ms": {"median": round(1000 * median(asks), 1), "max": round(1000 * max(asks), 1)},
        "slots_fed": round(fed, 1),
    }


def share(waits: Sequence[float]) -> float:
    """Of what it was held, and waited for, by trials of a second."""
    return sum(waits) / (sum(waits) + len(waits))


def num_ended(service: Service, name: str) -> int:
    """How many trials of a study have ended."""
    status = service.status(name)
    return 0 if status is None else status.num_ended


def main() -> None:
    """Measure, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=5000, help="what the study has already")
    parser.add_argument("--slots", type=int, default=2, help="that run trials of a second")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each is measured")
    arguments = parser.parse_args()
    configure_logging(level=logging.WARNING)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found: dict[str, Any] = {
        "bench": "feeding",
        "cores": psutil.cpu_count(),
        "trials": arguments.trials,
        "slots": arguments.slots,
    }
    for engine in ENGINES:
        with (
            tempfile.TemporaryDirectory(prefix="trialfleet-") as folder,
            EmbeddedRedis(Path(folder)) as server,
        ):
            settings = Settings(redis_url=server.url, home=Path(folder) / "home")
            found[engine] = measure(
                settings, engine, arguments.trials, arguments.slots, arguments.seconds
            )
    found["versions"] = {name: version(name) for name in ("optuna", "rustuna", "redis")}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
