"""A host that submits and orchestrates, and has nothing installed of what runs trials."""

from __future__ import annotations

import subprocess
import sys

import pytest

from workers.installed import TRAINING

#: Has processes find none of these packages, as if they were not installed.
ABSENT = f"""
from importlib.machinery import PathFinder

find = PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name.partition(".")[0] in {set(TRAINING)!r}
    else find(name, *rest)
)
"""

TORCH = """
import torch
from workers.managers import ModelManager

def objective(trial, models: ModelManager):
    return float(torch.tensor(trial.suggest_float("x", 1, 2)) ** 2)
"""


@pytest.fixture
def bare(tmp_path):
    """Variables of processes of such a host."""
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(ABSENT)
    (tmp_path / "training.py").write_text(TORCH)
    return {"PYTHONPATH": str(folder)}


def call(fleet, bare, *words):
    return subprocess.run(
        [sys.executable, *words],
        env={**fleet.environment(), **bare},
        cwd=fleet.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_it_submits_and_drives_a_study_of_torch_that_workers_elsewhere_train(fleet, bare):
    fleet.use_studies(fleet.folder)
    fleet.serve(**bare)
    fleet.worker()
    words = ["-m", "orchestrator", "submit", "training.py:objective", "--trials", "2"]
    submitted = call(fleet, bare, *words)
    assert submitted.returncode == 0, submitted.stderr
    said = submitted.stdout + submitted.stderr
    assert "training.py:objective' was not imported: this host runs no trials" in said
    assert "has no torch" in said
    waited = call(fleet, bare, "-m", "orchestrator", "watch", "training-objective")
    assert waited.returncode == 0, waited.stderr
    fleet.study = "training-objective"
    assert [trial.state.name for trial in fleet.trials()] == ["COMPLETE"] * 2


@pytest.mark.parametrize(
    "words",
    [
        ["-m", "celery", "-A", "workers", "worker"],
        ["-m", "orchestrator", "run", "training.py:objective"],
        ["-m", "orchestrator", "try", "training.py:objective"],
    ],
    ids=["worker", "run", "try"],
)
def test_what_runs_trials_is_refused_there_in_one_line_that_says_what_to_install(
    fleet, bare, words
):
    found = call(fleet, bare, *words)
    assert found.returncode == 2
    (line,) = found.stderr.strip().splitlines()
    assert "trials cannot run in this environment, which lacks torch, " in line
    assert "pip install 'trialfleet[" in line
    assert not list((fleet.folder / "home").glob("studies/*")), "nothing was begun"


def test_an_objective_whose_own_module_is_not_there_is_refused_all_the_same(fleet, bare):
    fleet.serve()
    found = call(fleet, bare, "-m", "orchestrator", "submit", "trainin:objective")
    assert found.returncode == 2
    assert "No module named 'trainin'" in found.stderr
