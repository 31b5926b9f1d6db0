#!/usr/bin/env python
"""What a host agent's look for leftovers of ended trials costs, by how many trials have ended.

It looks every 10 s. Beside it, in the same run and home, the look over every trial's own directory
that drafts of release 0.1.0 needed, which is now done once a start.

Prints one JSON line; times in milliseconds, the median of some looks.

    python ops/bench/sweep.py --trials 20000
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from orchestrator.local.servers import EmbeddedRedis
from workers.coordination.connection import connect
from workers.coordination.rights import Role
from workers.coordination.studies import ensure_epoch
from workers.disk.ended_trials import EndedTrials
from workers.disk.results import draft_directory, earlier_drafts
from workers.settings import Settings

ROUNDS: Final = 9

#: Trials that run, each with a draft.
RUNNING: Final = 8


def median_ms(look: Callable[[], object]) -> float:
    """How long a look takes."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        look()
        times.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(times), 3)


def fill(home: Path, trials: int) -> None:
    """A home after so many trials."""
    for number in range(trials):
        (home / "studies" / "s" / "trials" / str(number) / "result").mkdir(parents=True)
    for number in range(trials, trials + RUNNING):
        draft_directory(home, "s", number, 1).mkdir(parents=True)


def main() -> None:
    """Measure, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        fill(home, arguments.trials)
        with EmbeddedRedis(home) as server:
            client = connect(Settings(redis_url=server.url, home=home), Role.USER)
            ensure_epoch(client)
            ended = EndedTrials(client, home)
            ended.remove()  # the first one looks for what 0.1.0 left, too
            figures = {
                "trials": arguments.trials,
                "look_ms": median_ms(ended.remove),
                "look_over_every_trial_ms": median_ms(lambda: list(earlier_drafts(home))),
            }
            client.close()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
