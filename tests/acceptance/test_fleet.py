"""A fleet put together by hand: the lines of the Procfile, a worker that cannot work, a script."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

from waiting import wait_until

from orchestrator.local.servers import free_port
from workers.coordination import keys
from workers.coordination.hints import Hints
from workers.coordination.studies import Studies
from workers.protocol.spec import StudySpec
from workers.protocol.states import TrialState

ROOT = Path(__file__).parents[2]

OBJECTIVE = "def objective(trial):\n    return trial.suggest_float('x', -1, 1) ** 2\n"

SCRIPT = """
from orchestrator import Study, connect

study = Study(
    "squares:objective",
    name="scripted",
    trials=5,
    sampler={"type": "random", "seed": 1},
)
handle = study.submit()
status = handle.watch()
assert handle.study.best_value == handle.best_trial.value == status.best.value
with connect() as fleet:
    assert [each.name for each in fleet.studies()] == ["scripted", "squares-objective"]
print("best", handle.best_trial.number)
"""


def is_open(port: str) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", int(port))) == 0


def test_the_procfile_makes_a_fleet_that_takes_studies_from_elsewhere(machine):
    (machine.folder / "squares.py").write_text(OBJECTIVE)
    port = str(free_port())
    environment = machine.environment
    environment["FLEET_SLOTS"] = "1"
    environment["FLEET_OBJECTIVES"] = f"squares,{machine.folder}/squares.py"
    environment["PYTHONPATH"] = str(machine.folder)
    lines = (ROOT / "Procfile").read_text().strip().splitlines()
    commands = dict(line.replace("6389", port).split(": ", 1) for line in lines)
    assert list(commands) == ["redis", "orchestrator", "worker"]
    for name, command in commands.items():
        machine.start("sh", "-c", f"exec env {command}", log=f"{name}.log")
        if name == "redis":
            environment["FLEET_REDIS_URL"] = f"redis://127.0.0.1:{port}/0"
            wait_until(lambda: is_open(port), "Redis listens")
    wait_until(lambda: machine.processes("trial"), "the worker is there")

    machine.run("submit", "squares.py:objective", "--trials", 4)
    watched = machine.json("watch", "squares-objective")
    assert watched["trials"]["complete"] == 4
    assert machine.json("submit", "squares.py:objective", "--trials", 6)["trials"] == 6
    wait_until(
        lambda: machine.status("squares-objective").trials["complete"] == 6, "it is extended"
    )
    (machine.folder / "script.py").write_text(SCRIPT)
    script = machine.start(sys.executable, "script.py", log="script.log")
    output, _ = script.communicate(timeout=200)
    assert script.returncode == 0, (machine.folder / "script.log").read_text()
    assert "best" in output
    listed = {study["study"]: study["state"] for study in machine.json("studies")}
    assert listed == {"scripted": "finished", "squares-objective": "finished"}
    looked_at = json.loads(machine.start("trialfleet", "doctor", "--json").communicate()[0])
    found = {group["subject"]: group["findings"] for group in looked_at["groups"]}
    assert {each["level"] for each in [*found["fleet"], *found["trial"]]} == {"ok"}, found
    tree = machine.run("ps")
    for part in ("orchestrator", "main", "1 slot on default", "cpu slot 0", "lease"):
        assert part in tree


def test_a_worker_that_cannot_build_its_managers_takes_nothing_and_starts_no_storm(
    machine, server, client
):
    studies = Studies(client)
    studies.submit(StudySpec(name="s"))
    leases = studies.leases("s")
    leases.enqueue(0, {})
    hints = Hints(server.url)
    for _ in range(3):
        hints.send("s", 0, leases.epoch, "default")
    broken = machine.folder / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text("raise ImportError('libcudart.so: no such file')\n")
    machine.environment["PYTHONPATH"] = str(broken)
    machine.environment["FLEET_REDIS_URL"] = server.url
    machine.environment["FLEET_SLOTS"] = "2"
    worker = machine.start("celery", "-A", "workers", "worker", log="worker.log")
    assert worker.wait(60) is not None
    text = (machine.folder / "worker.log").read_text()
    failures = [json.loads(line) for line in text.splitlines() if '"managers_not_built"' in line]
    assert 1 <= len(failures) <= 4, text[-2000:]
    assert "libcudart.so" in failures[0]["exception"]
    record = leases.record(0)
    assert (record.state, record.attempt) == (TrialState.QUEUED, 0)
    waiting = hints.waiting(client, "default") + client.hlen(f"{keys.CELERY_PREFIX}unacked")
    assert waiting == 3
    hints.close()
