#!/usr/bin/env python
"""Kills a random process of a working fleet every few seconds, and counts what is lost.

The fleet is real: a Redis with an append-only file, `trialfleet serve`, a `celery worker` with two
slots, and trials that train, checkpoint and, half of them, load through DataLoader processes. What
is killed (SIGKILL) is started again, as a service manager would, and nothing else is done about it.
When the time is up, the study is left to end; a second study then runs undisturbed.

Prints one JSON line: `lost` trials without a complete result, `doubled` ends in the storage,
`orphans` (processes) and `leftovers` (shared memory, directories, keys) after the fleet was
stopped, `wasted` steps trained twice by steps trained (`most_steps_at_once`: by one
attempt; a checkpoint is taken every half second), and `slowdown`, the seconds a trial took
against those of the undisturbed study.

    python ops/bench/chaos.py --minutes 2 --seed 1
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import psutil
import redis
from counted import STEPS_VARIABLE, count_steps
from remains import ends_in_journal, files_of, keys_of, processes_of, shared_memory

from orchestrator.fleet import Fleet
from orchestrator.handle import StudyHandle
from orchestrator.local import EmbeddedRedis, LocalWorker, start_process, stop_process
from orchestrator.status import StudyStatus
from orchestrator.study import Study
from workers.coordination.connection import connect
from workers.settings import Settings

#: How often each kind of process is chosen.
KINDS: Final = {"child": 8, "loader": 4, "main": 3, "orchestrator": 3, "redis": 2}

#: Trials of the undisturbed study.
UNDISTURBED_TRIALS: Final = 24

OBJECTIVE: Final = f"{Path(__file__).with_name('counted.py')}:objective"


def make_study(name: str, trials: int) -> Study:
    """Short trials of some seconds, with a checkpoint every half second."""
    return Study(
        OBJECTIVE,
        name=name,
        direction="maximize",
        metric="accuracy",
        trials=trials,
        max_failures=1000,  # here a failure is a kill, and no fault of the trial
        sampler={"type": "random", "seed": 1},
        space={
            "learning_rate": {"type": "float", "low": 1e-3, "high": 4e-3, "log": True},
            "loader_workers": {"type": "categorical", "choices": [0, 1]},
        },
        config={
            "data": {"source": "cldr-language-id", "max_length": 32},
            "tokenizer": {"vocab_size": 1000},
            "model": {"architecture": "bert", "hidden_size": 32, "num_hidden_layers": 1},
            "batch_size": 64,
            "epochs": 4,
            "checkpoint_interval_seconds": 0.5,
            "save_model": "none",
        },
    )


class Bench:
    """One fleet under a home of its own, whose members are started again when they die."""

    def __init__(self, home: Path, time_scale: float) -> None:
        self.redis = EmbeddedRedis(home)
        self.steps = home / "steps"
        self.settings = Settings(
            redis_url=self.redis.url,
            home=home,
            slots=2,
            objectives=(OBJECTIVE.rpartition(":")[0],),
            time_scale=time_scale,
        )
        self.environment = {
            **os.environ,
            **self.settings.to_environment(),
            "WANDB_MODE": "disabled",
            STEPS_VARIABLE: str(self.steps),
        }
        self.worker = LocalWorker(self.environment, home / "logs" / "worker.log")
        self.orchestrator: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start all."""
        self.steps.mkdir(parents=True)
        self.redis.start()
        self.worker.start()
        self._start_orchestrator()

    def revive(self) -> None:
        """Start again what has died."""
        with suppress(Exception):  # killed while it starts: the next time then
            self.redis.revive()
        if self.worker.poll() is not None:
            self.worker.start()
        if self.orchestrator is not None and self.orchestrator.poll() is not None:
            self._start_orchestrator()

    def stop(self) -> None:
        """Drain, in the order that a service manager would."""
        self.worker.stop(60.0)
        if self.orchestrator is not None:
            stop_process(self.orchestrator, signal.SIGTERM, 20.0)
        self.redis.stop()

    def candidates(self) -> dict[str, list[int]]:
        """The processes that may be killed now, by kind."""
        assert self.orchestrator is not None  # noqa: S101 - it was started
        main = self.worker.pid
        found = {
            "main": [main],
            "orchestrator": [self.orchestrator.pid],
            "redis": [self.redis.pid],
            "child": [],
            "loader": [],
        }
        with suppress(psutil.Error):
            for process in psutil.Process(main).children(recursive=True):
                command = " ".join(process.cmdline())
                if "billiard.spawn" in command:
                    found["child"].append(process.pid)
                elif "multiprocessing.spawn" in command:
                    found["loader"].append(process.pid)
        return found

    def wait(self, name: str, seconds: float | None = None) -> StudyStatus:
        """Keep the fleet up until the study is over or the time is; its status then."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            self.revive()
            with suppress(redis.RedisError, Exception):
                status = StudyHandle(name, self.settings).status()
                if status.is_over or (deadline is not None and time.monotonic() > deadline):
                    return status
            time.sleep(0.5)

    def _start_orchestrator(self) -> None:
        log = self.settings.home / "logs" / "orchestrator.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            self.orchestrator = start_process(
                [sys.executable, "-m", "orchestrator.cli", "serve"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                output=sink,
            )


def torment(bench: Bench, minutes: float, pick: random.Random) -> Counter[str]:
    """Kill a random process every few seconds; how many of each kind were."""
    killed: Counter[str] = Counter()
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        pause = time.monotonic() + pick.uniform(2.0, 10.0)
        while time.monotonic() < min(pause, end):
            bench.revive()
            time.sleep(0.1)
        there = {kind: pids for kind, pids in bench.candidates().items() if pids}
        kind = pick.choices(list(there), [KINDS[kind] for kind in there])[0]
        with suppress(ProcessLookupError):
            os.kill(pick.choice(there[kind]), signal.SIGKILL)
            killed[kind] += 1
            say(f"killed {kind}; {dict(killed)}; {60 * minutes - (end - time.monotonic()):.0f} s")
    return killed


def say(text: str) -> None:
    """Show progress, away from the result."""
    print(text, file=sys.stderr, flush=True)


def measure(minutes: float, seed: int, time_scale: float) -> dict[str, Any]:
    """Run both studies; the figures."""
    before = shared_memory()
    with ExitStack() as stack:
        home = Path(tempfile.mkdtemp(prefix="trialfleet-chaos-"))
        say(f"home {home}")
        bench = Bench(home, time_scale)
        stack.callback(bench.stop)
        bench.start()
        client = connect(bench.settings)

        started = time.monotonic()
        make_study("chaos", 100_000).submit(bench.settings)
        killed = torment(bench, minutes, random.Random(seed))
        asked = bench_trials(bench, "chaos")
        # no more than were asked for by now
        make_study("chaos", max(asked, 1)).submit(bench.settings)
        say(f"left alone, with {asked} trials to end")
        status = bench.wait("chaos")
        seconds = time.monotonic() - started
        steps = count_steps(bench.steps)
        say(f"the study ended: {status.trials}")

        started = time.monotonic()
        make_study("undisturbed", UNDISTURBED_TRIALS).submit(bench.settings)
        undisturbed = bench.wait("undisturbed")
        per_trial_undisturbed = (time.monotonic() - started) / UNDISTURBED_TRIALS
        leftovers = keys_of(client, "chaos") + keys_of(client, "undisturbed")
        client.close()
    # what a stopped fleet still holds, it holds for ever
    deadline = time.monotonic() + 10.0
    while (orphans := processes_of(home)) and time.monotonic() < deadline:
        time.sleep(0.2)
    leftovers += files_of(home) + sorted(shared_memory() - before)
    ends = ends_in_journal(home, "chaos")
    num_trials = sum(status.trials.values())
    result = {
        "bench": "chaos",
        "seed": seed,
        "minutes": minutes,
        "time_scale": time_scale,
        "trials": num_trials,
        "kills": dict(killed),
        "lost": num_trials - status.trials["complete"],
        "doubled": sum(count - 1 for count in ends.values()),
        "orphans": len(orphans),
        "leftovers": len(leftovers),
        "steps": steps.trained,
        "steps_trained_twice": steps.repeated,
        "most_steps_at_once": steps.most_repeated,
        "wasted": round(steps.repeated / max(1, steps.trained), 4),
        "seconds": round(seconds, 1),
        "seconds_per_trial": round(seconds / max(1, num_trials), 2),
        "seconds_per_trial_undisturbed": round(per_trial_undisturbed, 2),
        "slowdown": round(seconds / max(1, num_trials) / per_trial_undisturbed, 2),
    }
    for text in [*orphans, *leftovers]:
        say(f"left behind: {text}")
    if undisturbed.trials["complete"] != UNDISTURBED_TRIALS:
        say(f"the undisturbed study ended with {undisturbed.trials}")
        result["lost"] = -1
    if is_clean(result):
        shutil.rmtree(home)
    else:
        say(f"kept for a look: {home}")
    return result


def bench_trials(bench: Bench, name: str) -> int:
    """How many trials of a study were asked for, as soon as somebody answers."""
    while True:
        bench.revive()
        with suppress(Exception), Fleet(bench.settings, connect(bench.settings)) as fleet:
            return len(fleet.study(name).study.trials)
        time.sleep(0.2)


def is_clean(result: dict[str, Any]) -> bool:
    """Whether nothing was lost, doubled or left behind."""
    return not any(result[key] for key in ("lost", "doubled", "orphans", "leftovers"))


def main() -> int:
    """Parse, measure, print; 1 if anything was lost, doubled or left behind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0, help="how long processes are killed")
    parser.add_argument("--seed", type=int, default=1, help="chooses whom, and when")
    parser.add_argument("--time-scale", type=float, default=1.0, help="as FLEET_TIME_SCALE")
    given = parser.parse_args()
    result = measure(given.minutes, given.seed, given.time_scale)
    print(json.dumps(result), flush=True)
    return 0 if is_clean(result) else 1


if __name__ == "__main__":
    sys.exit(main())
