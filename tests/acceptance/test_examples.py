"""The example studies of loops and trainers of one's own, each killed once in its training."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from waiting import wait_until

pytestmark = pytest.mark.timeout(280)

STUDIES = Path(__file__).parents[2] / "ops" / "studies"


def run_one_trial(machine, name, home, *, is_killed=False):
    """Run one trial of an example in a home of its own; what its status tells of it."""
    machine.home = machine.folder / home
    machine.environment["FLEET_HOME"] = str(machine.home)
    changes = {"epochs": 3, "checkpoint_seconds": 0 if is_killed else 1000}
    settings = [
        part for key, value in changes.items() for part in ("--set", f"config.{key}={value}")
    ]
    study = STUDIES / f"{name}.yaml"
    process = machine.start(
        "trialfleet", "run", study, "--slots", "1", "--trials", "1", "--json", *settings
    )
    if is_killed:  # known before training begins, which is over in seconds
        (found,) = wait_until(lambda: machine.processes("trial"), "a pool process is there", 90.0)
        wait_until(machine.checkpoints, "a checkpoint is there", 90.0)
        os.kill(found["identity"]["pid"], signal.SIGKILL)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, f"{machine.errors()}\n{machine.worker_log()[-3000:]}"
    (told,) = json.loads(output)["recent"]
    return told


@pytest.mark.parametrize("name", ["loop", "lightning_trainer"])
def test_an_example_that_is_killed_once_ends_with_the_value_of_an_undisturbed_one(machine, name):
    machine.environment["FLEET_CACHE"] = str(machine.folder / "cache")
    whole = run_one_trial(machine, name, "undisturbed")
    resumed = run_one_trial(machine, name, "killed", is_killed=True)
    assert resumed["value"] == whole["value"], "to the bit"
    assert (whole["attempts"], resumed["attempts"]) == (1, 2)
    left = {path.name for path in machine.folder.iterdir()}
    assert left == {"cache", "undisturbed", "killed", "command.log"}
