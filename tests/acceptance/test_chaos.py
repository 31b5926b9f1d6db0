"""The short form of ops/bench/chaos.py: two minutes in which random processes are killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "ops" / "bench"


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "minutes", [2, pytest.param(30, marks=[pytest.mark.slow, pytest.mark.timeout(4000)])]
)
def test_nothing_is_lost_doubled_or_left_behind_while_processes_are_killed(minutes):
    seed = int(os.environ.get("CHAOS_SEED", time.time_ns() % 10**6))
    print(f"seed {seed}; to kill in this order again: CHAOS_SEED={seed}")
    finished = subprocess.run(
        [
            sys.executable, str(BENCH / "chaos.py"), "--minutes", str(minutes),
            "--seed", str(seed), "--time-scale", "0.3", "--undisturbed", "4",
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert finished.stdout, finished.stderr[-3000:]
    result = json.loads(finished.stdout)
    print(result)
    found = {key: result[key] for key in ("lost", "doubled", "orphans", "leftovers")}
    assert found == dict.fromkeys(found, 0), finished.stderr[-3000:]
    assert result["trials"] > 3
    # one every 6 s, give or take, and a third of them commands, as the seed has it
    disturbances = sum(result["kills"].values()) + sum(result["commands"].values())
    assert disturbances >= 5 * minutes, "too few to tell anything"
    assert sum(result["kills"].values()) >= 2 * minutes
