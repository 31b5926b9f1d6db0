"""The examples of ops/studies of other loops and trainers, on real workers, killed midway."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from fault_fleet import broken_fleet
from offline_wandb import offline_runs
from waiting import wait_until

from orchestrator.handle import StudyHandle

#: The first of them waits for all that the others look at, too.
pytestmark = pytest.mark.timeout(1800)

STUDIES = Path(__file__).parents[2] / "ops" / "studies"

#: What makes an example quick, and has it save before it is killed.
QUICK = {
    "trainer": {
        "max_length": 8,
        "vocab_size": 300,
        "epochs": 1,
        "max_steps": 20,
        "checkpoint_seconds": 0,
        "report_to": "wandb",
    },
    "loop": {"max_length": 8, "vocab_size": 300, "epochs": 1, "checkpoint_seconds": 0},
    "accelerate_loop": {
        "max_length": 8,
        "vocab_size": 300,
        "batch_size": 1024,
        "epochs": 1,
        "checkpoint_seconds": 0,
    },
    "lightning_trainer": {"max_length": 8, "vocab_size": 300, "epochs": 1, "checkpoint_seconds": 0},
}

#: Ends an example's process once, when it has saved its fifth checkpoint.
DIES = """

def die_when_saved():
    import gc, os, signal
    from pathlib import Path

    from workers.coordination.leases import TrialLeases
    from workers.managers.wandb import WandbManager

    point_to, died = TrialLeases.checkpoint, Path(__file__).with_suffix(".died")

    def point_to_and_die(leases, *checkpoint):
        told = point_to(leases, *checkpoint)
        saved.append(told)
        if leases.study.startswith("killed") and len(saved) == 5 and not died.exists():
            died.touch()
            # what is written of an earlier trial of this process, behind its end, dies with it
            gc.unfreeze()  # a pool process freezes its managers, and they are not listed then
            [runs] = [each for each in gc.get_objects() if type(each) is WandbManager]
            runs.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return told

    saved = []
    TrialLeases.checkpoint = point_to_and_die


die_when_saved()
"""


def copy_of_studies(folder: Path) -> Path:
    """The examples, as they end once."""
    shutil.copytree(STUDIES, folder)
    for path in folder.glob("*.py"):
        path.write_text(path.read_text() + DIES)
    return folder


def study_file(name: str, kind: str) -> dict:
    """An example, of one trial with fixed numbers."""
    study = yaml.safe_load((STUDIES / f"{name}.yaml").read_text())
    del study["pruner"]
    sampler = {"type": "random", "seed": 7}
    own_name = f"{kind}-{name}"
    changes = {"name": own_name, "trials": 1, "sampler": sampler, "wandb": {"mode": "offline"}}
    config = dict(QUICK[name])
    if kind == "undisturbed":
        config["checkpoint_seconds"] = 1000
    return {**study, **changes, "config": config}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """A fleet on whose one slot each example ended twice: killed midway, and undisturbed."""
    with broken_fleet(tmp_path_factory.mktemp("trainers")) as made:
        made.use_studies(copy_of_studies(made.folder / "studies"))
        made.serve()
        made.worker()
        names = [f"{kind}-{name}" for kind in ("killed", "undisturbed") for name in QUICK]
        for kind in ("killed", "undisturbed"):
            for name in QUICK:
                made.hand_in(study_file(name, kind))
        for name in names:
            made.await_over(600, study=name)
        yield made


@pytest.mark.parametrize("name", QUICK)
def test_an_example_that_is_killed_in_the_middle_comes_to_the_value_of_an_undisturbed_one(
    fleet, name
):
    names = [f"killed-{name}", f"undisturbed-{name}"]
    killed, whole = (StudyHandle(each, fleet.settings).study.trials[0] for each in names)
    assert killed.state.name == whole.state.name == "COMPLETE"
    assert killed.user_attrs["trialfleet:attempt"] == 2
    assert killed.user_attrs["trialfleet:losses"] == 1
    assert (killed.params, killed.value) == (whole.params, whole.value)
    assert killed.intermediate_values == whole.intermediate_values

    def groups():
        found = (run["group"] for run in offline_runs(fleet.settings.home).values())
        return sorted(group for group in found if group in names)

    wait_until(lambda: groups() == names, "W&B writes on after a trial")
