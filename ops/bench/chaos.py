#!/usr/bin/env python
"""Kills a random process of a working fleet every few seconds, and counts what is lost.

Among the kills, people pause the study, resume, extend and cancel it, and order trials of it.

The fleet is real: a Redis with an append-only file, `trialfleet serve`, a `celery worker` with two
slots, and trials that train, checkpoint, log to W&B (offline, where there is no key) and, half of
them, load through DataLoader processes. What is killed (SIGKILL) is started again, as a service
manager would, and nothing else is done about it. When the time is up, the study is left to end; a
second study then runs undisturbed.

Prints one JSON line: `lost` trials without a complete result, `doubled` ends in the storage,
`wrong_orders` (ordered trials that are missing, or there twice), `orphans` (processes) and
`leftovers` (shared memory, directories, keys) after the fleet was stopped, `wasted` steps trained
twice by steps trained (`most_steps_at_once` by one attempt, where an undisturbed one makes
`steps_between_checkpoints`), and `slowdown`, the seconds that a trial took against those of the
undisturbed study. Trials that were cancelled with their study count as no loss.

    python ops/bench/chaos.py --minutes 2 --seed 1
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench_fleet import CHECKPOINT_SECONDS, BenchFleet, make_study
from commands import Commands
from counted import Steps, count_steps
from remains import ends_in_journal, files_of, keys_of, processes_of, shared_memory

from orchestrator.fleet import Fleet
from orchestrator.status import StudyStatus
from workers.coordination.connection import connect
from workers.coordination.rights import Role
from workers.logs import configure_logging

#: How often each kind of process is chosen.
KINDS: Final = {"child": 8, "loader": 4, "main": 3, "orchestrator": 3, "redis": 2, "other": 2}

#: How often people command something where else a process would be killed.
COMMANDED: Final = 0.35


def torment(
    bench: BenchFleet, minutes: float, pick: random.Random, commands: Commands
) -> Counter[str]:
    """Kill a random process, or command something, every few seconds; whom that took."""
    killed: Counter[str] = Counter()
    end = time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        pause = time.monotonic() + pick.uniform(2.0, 10.0)
        while time.monotonic() < min(pause, end):
            bench.revive()
            time.sleep(0.1)
        if pick.random() < COMMANDED:
            say(f"asked: {commands.ask()}; {dict(commands.asked)}")
            continue
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


@dataclass
class Outcome:
    """How one study went."""

    status: StudyStatus
    seconds: float
    steps: Steps
    cancels: int = 0
    """How often it was cancelled, and resumed."""

    @property
    def num_trials(self) -> int:
        """Trials that were asked for."""
        return sum(self.status.trials.values())

    @property
    def lost(self) -> int:
        """Trials without a result, but for those that were cancelled with their study."""
        trials = self.status.trials
        return self.num_trials - trials["complete"] - (trials["cancelled"] if self.cancels else 0)

    @property
    def seconds_per_trial(self) -> float:
        """Of the whole fleet."""
        return self.seconds / max(1, self.num_trials)


def run_tormented(
    bench: BenchFleet, minutes: float, seed: int
) -> tuple[Outcome, Counter[str], Commands]:
    """A study while processes are killed and people command, then left to end; whom that took."""
    started = time.monotonic()
    make_study("chaos", 100_000).submit(bench.settings)
    pick = random.Random(seed)
    commands = Commands(bench, "chaos", pick)
    killed = torment(bench, minutes, pick, commands)
    asked = sampled_trials(bench, "chaos")
    # no more than were asked for by now
    make_study("chaos", max(asked, 1)).submit(bench.settings)
    commands.let_go_on()
    say(f"left alone, with {asked} trials to end")
    outcome = finish(bench, "chaos", started)
    outcome.cancels = commands.asked["cancel"]
    return outcome, killed, commands


def run_undisturbed(bench: BenchFleet, trials: int) -> Outcome:
    """A study that nobody disturbs."""
    started = time.monotonic()
    make_study("undisturbed", trials).submit(bench.settings)
    return finish(bench, "undisturbed", started)


def finish(bench: BenchFleet, name: str, started: float) -> Outcome:
    """Wait for a study's end."""
    status = bench.wait(name)
    say(f"{name} ended: {status.trials}")
    return Outcome(status, time.monotonic() - started, count_steps(bench.steps / name))


def measure(
    minutes: float, seed: int, time_scale: float, undisturbed_trials: int
) -> dict[str, Any]:
    """Run both studies; the figures."""
    before = shared_memory()
    home = Path(tempfile.mkdtemp(prefix="trialfleet-chaos-"))
    say(f"home {home}")
    bench = BenchFleet(home, time_scale=time_scale)
    with ExitStack() as stack:
        stack.callback(bench.stop)
        bench.start()
        chaos, killed, commands = run_tormented(bench, minutes, seed)
        wrong_orders = commands.wrong_orders()
        undisturbed = run_undisturbed(bench, undisturbed_trials)
        client = connect(bench.settings, Role.USER)
        leftovers = keys_of(client, "chaos") + keys_of(client, "undisturbed")
        client.close()
    orphans = await_orphans(home)
    leftovers += files_of(home, bench.temporary) + sorted(shared_memory() - before)
    ends = ends_in_journal(home, "chaos")
    result = {
        "bench": "chaos",
        "seed": seed,
        "minutes": minutes,
        "time_scale": time_scale,
        "kills": dict(killed),
        "commands": dict(commands.asked),
        "cancelled": chaos.status.trials["cancelled"],
        "wrong_orders": wrong_orders,
        "lost": chaos.lost + undisturbed.lost,
        "doubled": sum(count - 1 for count in ends.values()),
        "orphans": len(orphans),
        "leftovers": len(leftovers),
        **costs(chaos, undisturbed),
    }
    for text in [*orphans, *leftovers]:
        say(f"left behind: {text}")
    keep_if_unclean(result, home, bench.temporary)
    return result


def await_orphans(home: Path, seconds: float = 10.0) -> list[str]:
    """The processes of a stopped fleet; what still runs after some seconds, runs for ever."""
    deadline = time.monotonic() + seconds
    while (orphans := processes_of(home)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return orphans


def keep_if_unclean(result: dict[str, Any], *folders: Path) -> None:
    """Remove the fleet's folders where nothing was lost or left; else somebody looks there."""
    if is_clean(result):
        for folder in folders:
            shutil.rmtree(folder)
    else:
        say(f"kept for a look: {', '.join(map(str, folders))}")


def costs(chaos: Outcome, undisturbed: Outcome) -> dict[str, Any]:
    """What the kills cost: steps trained twice, and time."""
    # a second on a slot that is not disturbed makes so many steps
    steps_per_second = undisturbed.steps.trained / max(1e-9, undisturbed.status.busy_seconds)
    return {
        "trials": chaos.num_trials,
        "steps": chaos.steps.trained,
        "steps_trained_twice": chaos.steps.repeated,
        "wasted": round(chaos.steps.repeated / max(1, chaos.steps.trained), 4),
        "most_steps_at_once": chaos.steps.most_repeated,
        "steps_between_checkpoints": round(CHECKPOINT_SECONDS * steps_per_second),
        "seconds": round(chaos.seconds, 1),
        "seconds_per_trial": round(chaos.seconds_per_trial, 2),
        "seconds_per_trial_undisturbed": round(undisturbed.seconds_per_trial, 2),
        "slowdown": round(chaos.seconds_per_trial / undisturbed.seconds_per_trial, 2),
    }


def sampled_trials(bench: BenchFleet, name: str) -> int:
    """How many trials of a study its sampler was asked for, as soon as somebody answers."""
    while True:
        bench.revive()
        with (
            suppress(Exception),
            Fleet(bench.settings, connect(bench.settings, Role.USER)) as fleet,
        ):
            trials = fleet.study(name).study.trials
            return sum("fixed_params" not in trial.system_attrs for trial in trials)
        time.sleep(0.2)


def is_clean(result: dict[str, Any]) -> bool:
    """Whether nothing was lost, doubled or left behind."""
    return not any(
        result[key] for key in ("lost", "doubled", "wrong_orders", "orphans", "leftovers")
    )


def main() -> int:
    """Parse, measure, print; 1 if anything was lost, doubled or left behind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0, help="how long processes are killed")
    parser.add_argument("--seed", type=int, default=1, help="chooses whom, and when")
    parser.add_argument("--time-scale", type=float, default=1.0, help="as FLEET_TIME_SCALE")
    parser.add_argument("--undisturbed", type=int, default=24, help="trials to compare with")
    given = parser.parse_args()
    configure_logging(level=logging.WARNING)  # to standard error, as all that is no result
    result = measure(given.minutes, given.seed, given.time_scale, given.undisturbed)
    print(json.dumps(result), flush=True)
    return 0 if is_clean(result) else 1


if __name__ == "__main__":
    sys.exit(main())
