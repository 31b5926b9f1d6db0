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
    command = ["trialfleet", "run", STUDIES / f"{name}.yaml", "--slots", "1", "--trials", "1"]
    settings = ["--set", "config.checkpoint_seconds=0", "--set", "config.epochs=2"]
    process = machine.start(*command, *settings, "--json")
    if is_killed:
        wait_until(machine.checkpoints, "a checkpoint is there", 120.0)
        (trainer,) = machine.processes("trial")
        os.kill(trainer["identity"]["pid"], signal.SIGKILL)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, f"{machine.errors()}\n{machine.worker_log()[-3000:]}"
    (told,) = json.loads(output)["trials_ended"]
    return told


@pytest.mark.parametrize("name", ["loop"])
def test_an_example_that_is_killed_once_ends_with_the_value_of_an_undisturbed_one(machine, name):
    machine.environment["FLEET_CACHE"] = str(machine.folder / "cache")
    whole = run_one_trial(machine, name, "undisturbed")
    resumed = run_one_trial(machine, name, "killed", is_killed=True)
    assert resumed["value"] == whole["value"], "to the bit"
    assert (whole["attempts"], resumed["attempts"]) == (1, 2)
    assert not [path for path in machine.folder.iterdir() if "lightning" in path.name]
