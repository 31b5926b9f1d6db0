"""The examples of ops/studies of other loops and trainers, on real workers, killed midway."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import yaml
from offline_wandb import offline_runs
from waiting import wait_until

from orchestrator.handle import StudyHandle

STUDIES = Path(__file__).parents[2] / "ops" / "studies"

#: What makes an example quick, and has it save before it is killed.
QUICK = {
    "trainer": {
        "max_length": 8,
        "vocab_size": 300,
        "epochs": 1,
        "max_steps": 80,
        "checkpoint_seconds": 0.5,
        "report_to": "wandb",
    },
    "loop": {"max_length": 8, "vocab_size": 300, "epochs": 3, "checkpoint_seconds": 0},
    "lightning_trainer": {"max_length": 8, "vocab_size": 300, "epochs": 3, "checkpoint_seconds": 0},
}


def study_file(name: str, called: str) -> dict:
    """An example, of one trial with fixed numbers."""
    study = yaml.safe_load((STUDIES / f"{name}.yaml").read_text())
    del study["pruner"]
    sampler = {"type": "random", "seed": 7}
    changes = {"name": called, "trials": 1, "sampler": sampler, "wandb": {"mode": "offline"}}
    config = dict(QUICK[name])
    if called == "undisturbed":
        config["checkpoint_seconds"] = 1000
    return {**study, **changes, "config": config}


@pytest.mark.parametrize("name", QUICK)
def test_an_example_that_is_killed_in_the_middle_comes_to_the_value_of_an_undisturbed_one(
    fleet, name
):
    fleet.use_studies(STUDIES)
    fleet.serve()
    fleet.worker()
    fleet.hand_in(study_file(name, "killed"))

    def saved() -> bool:
        record = fleet.leases.record(0)
        return record is not None and record.checkpoint is not None

    wait_until(saved, "it has saved a checkpoint", 120.0)
    (runs,) = [entry for entry in fleet.processes("trial") if entry.trial == 0]
    os.kill(runs.identity.pid, signal.SIGKILL)
    fleet.await_over()
    fleet.hand_in(study_file(name, "undisturbed"))
    fleet.await_over()

    killed, whole = (
        StudyHandle(study, fleet.settings).study.trials[0] for study in ("killed", "undisturbed")
    )
    assert killed.state.name == whole.state.name == "COMPLETE"
    assert killed.user_attrs["trialfleet:attempt"] == 2
    assert (killed.params, killed.value) == (whole.params, whole.value)
    assert killed.intermediate_values == whole.intermediate_values
    runs = offline_runs(fleet.settings.home)
    assert sorted(run["group"] for run in runs.values()) == ["killed", "undisturbed"]
