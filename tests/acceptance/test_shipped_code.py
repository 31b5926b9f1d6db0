"""Code that travels from its author's folder to a worker that has none of it."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from waiting import wait_until

from orchestrator.handle import StudyHandle
from workers.settings import Settings

pytestmark = pytest.mark.timeout(300)

SECRET = "canary-of-the-fleets-secret"

OBJECTIVE = """
import os
import version

def objective(trial):
    trial.set_user_attr("surroundings", dict(os.environ))
    trial.set_user_attr("process", os.getpid())
    return version.VALUE
"""


def write_study(folder, name, value):
    (folder / name).mkdir()
    (folder / name / "train.py").write_text(OBJECTIVE)
    (folder / name / "version.py").write_text(f"VALUE = {value}\n")
    (folder / name / f"{name}.yaml").write_text(
        "objective: train.py:objective\ntrials: 3\ncode: {ship: [train.py, version.py]}\n"
    )
    return folder / name / f"{name}.yaml"


def test_two_versions_of_a_module_run_on_a_worker_that_takes_what_is_signed(
    machine, server, client, tmp_path
):
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    common = {"FLEET_REDIS_URL": server.url, "FLEET_SLOTS": "1", "FLEET_TIME_SCALE": "0.1"}
    machine.environment |= {**common, "FLEET_CACHE": str(tmp_path / "cache")}
    given = {"FLEET_SECRET_FILE": str(tmp_path / "secret")}
    machine.environment |= given
    worker = ("celery", "-A", "workers", "worker")
    closed = machine.start(*worker, log="closed.log")
    machine.start("trialfleet", "serve", log="serve.log")
    for name, value in [("old", 1), ("new", 2)]:
        study = write_study(tmp_path, name, value)
        machine.run("submit", study)
        for file in study.parent.glob("*.py"):
            file.unlink()

    def reasons():
        told = " ".join(machine.status("old").waits_for)
        return told if "FLEET_ACCEPT_CODE=signed" in told else None

    assert "no worker takes its trials" in wait_until(reasons, "it is said what to set", 90.0)
    wait_until(lambda: machine.status("old").trials["queued"], "its trials wait", 60.0)
    closed.terminate()
    closed.wait(90)
    # as a service does it that is given the secret in its environment
    machine.environment = {
        name: value for name, value in machine.environment.items() if name not in given
    }
    machine.environment |= {"FLEET_ACCEPT_CODE": "signed", "FLEET_SECRET": SECRET}
    machine.start(*worker, log="worker.log")
    for name, value in [("old", 1.0), ("new", 2.0)]:
        status = machine.json("watch", name)
        assert status["trials"]["complete"] == 3
        assert status["trials"]["failed"] == 0
        trials = StudyHandle(name, Settings(home=machine.home)).study.trials
        assert [trial.value for trial in trials] == [value] * 3
    assert SECRET not in machine.run("ps", "--json") + machine.run("status", "old", "--json")
    told = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "secret"]
    assert [path for path in told if _holds_secret(path)] == []
    assert SECRET not in json.dumps([_shown(client, key) for key in client.keys("*")])


def _holds_secret(path):
    with suppress(FileNotFoundError):  # a draft that has its name by now, a result that was told
        return SECRET.encode() in path.read_bytes()


def _shown(client, key):
    read = {"hash": client.hgetall, "stream": client.xrange, "string": client.get}
    return read.get(client.type(key), lambda _: None)(key)
