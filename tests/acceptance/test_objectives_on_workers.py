"""Objectives in real pool processes: what surrounds them there, and processes that are replaced."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from orchestrator.handle import StudyHandle
from workers.settings import Settings

#: Each trial looks around; some of them leave what the next one is to cope with.
OBJECTIVE = """
import argparse, os, sys, threading
from pathlib import Path

from torch.utils.data import DataLoader, Dataset

import rows

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.5)
arguments = parser.parse_args()

HERE = Path(__file__).parent


class Rows(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return rows.VALUE


def load(start_method):
    loader = DataLoader(Rows(), num_workers=1, multiprocessing_context=start_method)
    return sorted({int(value) for batch in loader for value in batch})


def objective(trial):
    again = argparse.ArgumentParser().parse_args()
    trial.set_user_attr("arguments", [*sys.argv, arguments.lr, len(vars(again))])
    trial.set_user_attr("folders", [os.getcwd(), sys.path[0]])
    trial.set_user_attr("value", rows.VALUE)
    if trial.number in {1, 3}:  # what was read first, and what was read again
        trial.set_user_attr("loaded", [load(method) for method in (None, "spawn")])
    trial.set_user_attr("process", os.getpid())
    trial.set_user_attr("attempt", trial.attempt)
    if trial.number == 0:
        (HERE / "rows.py").write_text("VALUE = 2\\n")
    if trial.number == 1:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    if trial.number == 2:
        import xxlimited
        trial.set_user_attr("extension", xxlimited.__file__)
        (HERE / "rows.py").write_text("VALUE = 3\\n")
    trial.set_user_attr("read", Path("data/train.txt").read_text())
    return 1.0
"""


def write_objective(folder: Path, importing: str = "import") -> None:
    """An objective, a sibling, and a C extension beside them."""
    folder.mkdir()
    source = OBJECTIVE.replace("import rows", f"{importing} rows")
    (folder / "train.py").write_text(source.replace("import xxlimited", f"{importing} xxlimited"))
    (folder / "rows.py").write_text("VALUE = 1\n")
    extension = importlib.util.find_spec("xxlimited")
    assert extension is not None
    assert extension.origin is not None
    shutil.copy(extension.origin, folder)


def assert_each_is_as_in_its_script(trials, file: Path, working_directory: Path) -> None:
    found = [trial.user_attrs for trial in trials]
    for facts in found:
        assert facts["arguments"] == [str(file), 0.5, 0]
        assert facts["folders"][0] == str(working_directory)
    assert [facts["value"] for facts in found] == [1, 2, 2, 3]
    assert [found[number]["loaded"] for number in (1, 3)] == [[[2]] * 2, [[3]] * 2]
    assert found[2]["extension"].startswith(str(file.parent))
    first, second, third, fourth = (facts["process"] for facts in found)
    assert first == second, "an edited file takes no other process"
    assert third != second, "a thread goes on in the one before"
    assert fourth != third, "an extension of older code is loaded in the one before"
    assert [facts["attempt"] for facts in found] == [1, 1, 1, 2], "the fourth was handed over"


def test_an_objective_finds_what_it_finds_when_its_file_is_run(machine):
    write_objective(machine.folder / "lab")
    (machine.folder / "data").mkdir()
    (machine.folder / "data" / "train.txt").write_text("text")
    status = machine.json("run", "lab/train.py:objective", "--slots", 1, "--trials", 4)
    assert status["trials"]["complete"] == 4, machine.worker_log()[-3000:]
    trials = StudyHandle(status["study"], Settings(home=machine.home)).study.trials
    file = machine.folder / "lab" / "train.py"
    assert_each_is_as_in_its_script(trials, file, machine.folder)
    assert [trial.user_attrs["folders"][1] for trial in trials] == [str(file.parent)] * 4
    assert [trial.user_attrs["read"] for trial in trials] == ["text"] * 4
    assert machine.events("attempt_failed") == []
    assert len(machine.events("process_ends")) == 2


def test_in_a_fleet_paths_are_relative_to_the_worker_and_an_error_says_so(machine, server, client):
    write_objective(machine.folder / "pack", "from . import")
    elsewhere = machine.folder / "elsewhere"
    elsewhere.mkdir()
    machine.environment |= {
        "FLEET_REDIS_URL": server.url,
        "FLEET_SLOTS": "1",
        "FLEET_OBJECTIVES": "pack",
        "FLEET_TIME_SCALE": "0.2",
        "PYTHONPATH": str(machine.folder),
    }
    worker = "cd elsewhere && exec celery -A workers worker"
    machine.start("sh", "-c", worker, log="worker.log")
    machine.start("trialfleet", "serve", log="serve.log")
    machine.run("submit", "pack.train:objective", "--trials", 1)
    status = machine.json("watch", "pack.train-objective", code=1)
    (failed,) = status["recent"]
    assert failed["state"] == "failed"
    assert "data/train.txt" in failed["error"]
    assert f"the working directory of this worker is {elsewhere}" in failed["error"]

    (elsewhere / "data").mkdir()
    (elsewhere / "data" / "train.txt").write_text("text")
    (machine.folder / "pack" / "rows.py").write_text("VALUE = 1\n")
    study = machine.folder / "again.yaml"
    study.write_text("{name: again, objective: 'pack.train:objective', trials: 4}")
    machine.run("submit", study)
    assert machine.json("watch", "again")["trials"]["complete"] == 4
    trials = StudyHandle("again", Settings(home=machine.home)).study.trials
    assert_each_is_as_in_its_script(trials, machine.folder / "pack" / "train.py", elsewhere)
