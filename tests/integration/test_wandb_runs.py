"""What W&B's offline files hold after trials that ended in every way."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from offline_wandb import offline_runs

PROGRAM = """
import sys
from workers.managers import initialize_factory, get_wandb_manager
initialize_factory({"home": sys.argv[1]})
wandb = get_wandb_manager()
wandb.start("s", 0, {"x": 0.5}, 1)
wandb.start("s", 0, {"x": 0.5}, 1)
wandb.log({"accuracy": 0.25}, step=3)
wandb.finish(0)
wandb.start("s", 1, {"x": 0.7}, 2)
wandb.finish(1)
wandb.start("s", 2, {}, 1)
wandb.log({"accuracy": 0.75}, step=1)
# and the process ends, with a run open
"""


def run(program, home, **environment):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, home],
        env={**clean, "HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished


@pytest.mark.timeout(120)
def test_each_trial_is_one_run_of_its_studys_group_finished_on_every_way_out(tmp_path):
    run(PROGRAM, tmp_path)
    assert offline_runs(tmp_path) == {
        "s-0": {"group": "s", "exits": [0], "attempt": 1, "accuracy": [0.25]},
        "s-1": {"group": "s", "exits": [1], "attempt": 2, "accuracy": []},
        "s-2": {"group": "s", "exits": [1], "attempt": 1, "accuracy": [0.75]},
    }


@pytest.mark.timeout(120)
def test_what_goes_wrong_in_wandb_is_logged_and_no_more(tmp_path):
    program = PROGRAM.replace(
        "wandb = get", "import wandb as w; w.init = lambda **_: 1 / 0\nwandb = get"
    )
    finished = run(program, tmp_path)
    output = finished.stdout + finished.stderr
    assert output.count("wandb_failed") == 3
    assert "ZeroDivisionError" in output


@pytest.mark.timeout(120)
def test_disabled_it_does_nothing(tmp_path):
    run(PROGRAM, tmp_path, WANDB_MODE="disabled")
    assert not (tmp_path / "wandb").exists()


SLOW = """
import sys, threading
from workers.managers import initialize_factory, get_wandb_manager
from workers.managers import wandb as module
module.MAX_WAITING = 5
initialize_factory({"home": sys.argv[1]})
wandb = get_wandb_manager()
wandb.flush()
is_back = threading.Event()
wandb.start("s", 0, {}, 1)
wandb._put(is_back.wait)
for step in range(1000):
    wandb.log({"accuracy": 0.5}, step=step)
assert wandb._jobs.qsize() <= 8, wandb._jobs.qsize()
is_back.set()
wandb.finish(0)
assert wandb.flush()
"""


@pytest.mark.timeout(120)
def test_a_wandb_that_is_far_behind_costs_points_and_no_run(tmp_path):
    finished = run(SLOW, tmp_path, WANDB_MODE="offline")
    assert "wandb_points_dropped" in finished.stdout + finished.stderr
    found = offline_runs(tmp_path)["s-0"]
    assert found["exits"] == [0]
    assert 0 < len(found["accuracy"]) < 10
