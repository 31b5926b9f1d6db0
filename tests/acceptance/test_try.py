"""`trialfleet try` as a user types it: one trial, a debugger, and nothing left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent

OBJECTIVE = """
from workers.managers import TensorManager

def objective(trial, tensors: TensorManager):
    x = trial.suggest_float("x", 0.0, 1.0)
    print("managers", type(tensors).__name__)
    breakpoint()
    trial.report(x, 1)
    if trial.config.get("fails"):
        raise ValueError("it fails")
    return x
"""


@pytest.fixture
def try_out(tmp_path):
    """Runs `trialfleet try` with some settings, and something typed."""
    (tmp_path / "tried.py").write_text(OBJECTIVE)
    variables = {name: value for name, value in os.environ.items() if name[:6] != "FLEET_"}
    variables |= {"FLEET_HOME": str(tmp_path / "home"), "FLEET_CACHE": str(tmp_path / "cache")}
    variables["FLEET_SECRET"] = "a-secret-that-no-objective-is-to-read"

    def run(*options, typed):
        return subprocess.run(
            [BIN / "trialfleet", "try", f"{tmp_path}/tried.py:objective", *options],
            input=typed,
            capture_output=True,
            text=True,
            env=variables,
            cwd=tmp_path,
            timeout=300,
            check=False,
        )

    return run


def remains():
    return list(Path(tempfile.gettempdir()).glob("trialfleet-try-*"))


def test_a_trial_runs_under_a_debugger_with_real_managers_and_leaves_nothing(try_out, tmp_path):
    ended = try_out(
        "--json", typed="p 6 * 7\np [*__import__('os').environ].count('FLEET_SECRET') + 70\nc\n"
    )
    assert ended.returncode == 0, ended.stderr
    assert "managers TensorManager" in ended.stderr
    assert "(Pdb) 42" in ended.stderr
    assert "(Pdb) 70" in ended.stderr, "it is not in the environment of an objective"
    document = json.loads(ended.stdout)
    assert (document["state"], document["value"]) == ("complete", document["params"]["x"])
    assert not (tmp_path / "home").exists()
    assert remains() == []


def test_what_an_objective_raises_is_shown_and_debugged_where_it_was_raised(try_out):
    ended = try_out("--pdb", "--set", "config.fails=true", typed="c\np 'at', x == x\nq\n")
    assert ended.returncode == 1
    assert "(Pdb) ('at', True)" in ended.stdout
    assert "dead" in ended.stdout
    assert 'raise ValueError("it fails")' in ended.stderr
    assert remains() == []
