"""What W&B's offline files hold after trials that ended in every way."""

from __future__ import annotations

import os
import subprocess
import sys

from offline_wandb import offline_runs

PROGRAM = """
import sys
from workers.managers import initialize_factory, get_wandb_manager
initialize_factory({"home": sys.argv[1]})
wandb = get_wandb_manager()
from workers.protocol.spec import WandbSpec
asked = WandbSpec.model_validate_json(sys.argv[2]) if len(sys.argv) > 2 else None
drawn = {"x": 0.5}
wandb.start("s", 0, lambda: drawn, 1, asked)
wandb.start("s", 0, lambda: drawn, 1, asked)
wandb.log({"accuracy": 0.25}, step=3)
drawn["late"] = 7
wandb.finish(0)
wandb.start("s", 1, lambda: {"x": 0.7}, 2, asked)
wandb.finish(1)
wandb.start("s", 2, dict, 1, asked, "0123456789abcdef")  # its study was deleted before, and is anew
wandb.log({"accuracy": 0.75}, step=1)
# and the process ends, with a run open
"""


def run(program, home, *arguments, **environment):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, home, *arguments],
        env={**clean, "HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished


def test_each_trial_is_one_run_of_its_studys_group_finished_on_every_way_out(tmp_path):
    run(PROGRAM, tmp_path, WANDB_MODE="offline")
    runs = offline_runs(tmp_path)
    wanted = ("group", "exits", "attempt", "accuracy")
    assert {name: {key: run[key] for key in wanted} for name, run in runs.items()} == {
        "s-0": {"group": "s", "exits": [0], "attempt": 1, "accuracy": [0.25]},
        "s-1": {"group": "s", "exits": [1], "attempt": 2, "accuracy": []},
        "s-2-01234567": {"group": "s", "exits": [1], "attempt": 1, "accuracy": [0.75]},
    }


def test_what_goes_wrong_in_wandb_is_logged_and_no_more(tmp_path):
    program = PROGRAM.replace(
        "wandb = get", "import wandb as w; w.init = lambda **_: 1 / 0\nwandb = get"
    )
    finished = run(program, tmp_path, WANDB_MODE="offline")
    output = finished.stdout + finished.stderr
    assert output.count("wandb_failed") == 3
    assert "ZeroDivisionError" in output


UNTOUCHED = f"{PROGRAM}\nassert 'wandb' not in sys.modules"


def test_where_nobody_asked_for_it_it_is_not_even_imported(tmp_path):
    run(UNTOUCHED, tmp_path)
    assert not (tmp_path / "wandb").exists()


def test_a_study_that_asks_for_runs_has_them_as_it_says(tmp_path):
    asked = '{"mode": "offline", "project": "names", "entity": "we", "tags": ["a", "b"]}'
    run(PROGRAM, tmp_path, asked)
    found = offline_runs(tmp_path)
    assert {name: run["exits"] for name, run in found.items()} == {
        "s-0": [0], "s-1": [1], "s-2-01234567": [1],
    }  # fmt: skip
    about = found["s-0"]
    assert (about["project"], about["entity"], about["tags"]) == ("names", "we", ["a", "b"])
    assert about["late"] == 7, "what was drawn after the first point"


def test_no_run_tells_a_password_that_an_objective_drew(tmp_path):
    home = '"home": sys.argv[1]'
    program = (
        PROGRAM.replace(home, f'{home}, "redis_url": "redis://:canary-w5c1@box/0"')
        .replace('{"x": 0.5}', '{"x": "at redis://:canary-w5c1@box/0"}')
        .replace('drawn["late"] = 7', 'drawn["late"] = "canary-w5c1"')
    )
    run(program, tmp_path, WANDB_MODE="offline")
    kept = {path: path.read_bytes() for path in (tmp_path / "wandb").rglob("*") if path.is_file()}
    assert any(b"at redis://:***@box/0" in content for content in kept.values())
    assert [path for path, content in kept.items() if b"canary-w5c1" in content] == []


SLOW = """
import sys, threading
from workers.managers import initialize_factory, get_wandb_manager
from workers.managers import wandb as module
module.MAX_WAITING = 5
initialize_factory({"home": sys.argv[1]})
wandb = get_wandb_manager()
wandb.flush()
is_back = threading.Event()
wandb.start("s", 0, dict, 1)
wandb.log({"accuracy": 0.5}, step=0)
wandb._put(is_back.wait)
for step in range(1000):
    wandb.log({"accuracy": 0.5}, step=step)
assert wandb._jobs.qsize() <= 8, wandb._jobs.qsize()
is_back.set()
wandb.finish(0)
assert wandb.flush()
"""


def test_a_wandb_that_is_far_behind_costs_points_and_no_run(tmp_path):
    finished = run(SLOW, tmp_path, WANDB_MODE="offline")
    assert "wandb_points_dropped" in finished.stdout + finished.stderr
    found = offline_runs(tmp_path)["s-0"]
    assert found["exits"] == [0]
    assert 0 < len(found["accuracy"]) < 10
