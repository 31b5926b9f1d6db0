"""The runbook and the Slurm script of `ops/deploy`, on a real fleet while it trains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import yaml
from fault_fleet import signal_all, tree_of
from runbook import Runbook
from waiting import wait_until

DEPLOY = Path(__file__).parents[2] / "ops" / "deploy"


#: Run on servers of their own by `integration/test_sentinels.py`.
ELSEWHERE = {"A primary that was replaced"}


def make_operator(fleet) -> dict[str, str]:
    """What the page says of Redis, as it is here: its place, and the operator's password."""
    parts = urlsplit(fleet.redis.url)
    secrets = fleet.folder / "secrets"
    secrets.mkdir()
    (secrets / "redis-operator").write_text("a password\n")
    fleet.client.acl_setuser(
        "operator",
        enabled=True,
        passwords=["+a password"],
        categories=["+@all"],
        keys=["*"],
        channels=["*"],
    )
    place = {"REDIS_HOST": str(parts.hostname), "REDIS_PORT": str(parts.port)}
    return {"SECRETS": str(secrets), **place}


def write_study(fleet) -> Path:
    path = fleet.folder / "study.yaml"
    study = {"name": "fault", "objective": "faulty.py:train", "trials": 1, "direction": "minimize"}
    path.write_text(yaml.safe_dump(study))
    fleet.study = "fault"
    return path


class Operator:
    """Follows the runbook on a fleet whose one trial stays where it is, attempt after attempt."""

    def __init__(self, fleet) -> None:
        self.fleet = fleet
        operator = make_operator(fleet)
        self.book = Runbook(fleet.folder, fleet.environment, NAME="fault", **operator)
        self.secret = fleet.folder / "secret"
        self.secret.write_text("an old secret of the fleet\n")
        fleet.settings = fleet.settings.model_copy(update={"secret_file": self.secret})
        fleet.order("stay until go", attempt="*", step=10)
        self.orchestrator, self.worker = fleet.serve(), fleet.worker()
        self._num_stays = 0

    def await_stay(self) -> int:
        """The process of the trial's next attempt, once it stays."""

        def find():
            found = self.fleet.notes("stay until go")
            return found[-1].pid if len(found) > self._num_stays else None

        pid = wait_until(find, f"it stays once more than {self._num_stays} times", 120.0)
        self._num_stays = len(self.fleet.notes("stay until go"))
        return pid

    def replace_orchestrator(self) -> None:
        self.orchestrator.send_signal(signal.SIGTERM)
        self.orchestrator.wait(60)
        self.orchestrator = self.fleet.serve()

    def replace_worker(self) -> int:
        self.worker.stop(60.0)
        self.worker = self.fleet.worker()
        return self.await_stay()

    def start(self) -> None:
        wait_until(lambda: self.fleet.processes("trial"), "the worker is ready")
        assert "orchestrator" in self.book.follow("Start", STUDY=write_study(self.fleet))
        self.await_stay()

    def drain(self) -> None:
        self.book.follow("Drain a worker", WORKER_PID=self.worker.pid)
        wait_until(lambda: self.worker.poll() == 0, "it has drained")
        assert "its worker shut down" in self.book.follow("Drain a worker")
        self.replace_worker()

    def upgrade(self) -> None:
        self.book.follow("Upgrade with trials running", WORKER_PID=self.worker.pid)
        wait_until(lambda: self.worker.poll() == 0, "it has drained")
        self.replace_worker()
        self.book.follow("Upgrade with trials running", ORCHESTRATOR_PID=self.orchestrator.pid)
        assert self.orchestrator.wait(60) == 0
        self.orchestrator = self.fleet.serve()

    def see_to_a_dead_worker(self) -> int:
        signal_all(tree_of(self.worker.pid), signal.SIGKILL)
        wait_until(lambda: self.worker.poll() is not None, "the worker is gone")
        pid = self.replace_worker()
        assert "attempt 4" in self.book.follow("A dead worker").lower()
        return pid

    def end_a_stuck_lease(self, pid: int) -> None:
        assert f" {pid} fault 0 " in self.book.follow("A stuck lease")
        self.book.follow("A stuck lease", TRIAL_PID=pid)
        self.await_stay()

    def make_room_in_redis(self) -> None:
        self.fleet.client.config_set("maxmemory", 1)
        wait_until(lambda: self.fleet.events("redis_lost"), "somebody is refused")
        assert "maxmemory_policy:noeviction" in self.book.follow("Redis is full")
        wait_until(lambda: self.fleet.processes("main"), "the worker beats again")

    def lose_redis(self) -> None:
        self.book.follow("A lost Redis")
        wait_until(lambda: self.fleet.client.exists("fleet:studies"), "it is written again")
        self.await_stay()
        assert "fault" in self.book.follow("A lost Redis")

    def restore_a_backup(self) -> None:
        backup, restored = self.fleet.folder / "backup.tgz", self.fleet.folder / "restored"
        self.book.follow("Back-up", BACKUP=backup)
        self.orchestrator.send_signal(signal.SIGTERM)
        self.orchestrator.wait(60)
        self.worker.stop(60.0)
        self.book.follow("Restore", BACKUP=backup, RESTORED=restored)
        self.fleet.client.flushall()
        self.fleet.settings = self.fleet.settings.model_copy(update={"home": restored})
        self.orchestrator = self.fleet.serve()
        self.replace_worker()

    def change_the_secret(self) -> None:
        for _ in range(2):
            self.book.follow("Another FLEET_SECRET", SECRET_FILE=self.secret)
            self.replace_orchestrator()
            self.replace_worker()
        assert "old" not in self.secret.read_text()


@pytest.mark.long
def test_each_command_of_the_runbook_does_what_it_says_while_a_trial_runs(fleet):
    operator = Operator(fleet)
    operator.start()
    operator.drain()
    operator.upgrade()
    operator.end_a_stuck_lease(operator.see_to_a_dead_worker())
    operator.make_room_in_redis()
    operator.lose_redis()
    operator.restore_a_backup()
    operator.change_the_secret()
    fleet.go()
    fleet.await_over()
    fleet.assert_sound()
    left = {heading for heading, blocks in operator.book.left.items() if blocks}
    assert left == ELSEWHERE, "each block was run"


#: Does as Slurm does: signals that `srun` gets go to all processes of the step.
SRUN = """#!/usr/bin/env python3
import os, signal, subprocess, sys
import psutil
step = subprocess.Popen(sys.argv[1:], start_new_session=True)
def pass_on(number, _frame):
    main = psutil.Process(step.pid)
    for each in [*main.children(recursive=True), main]:
        each.send_signal(number)
signal.signal(signal.SIGTERM, pass_on)
sys.exit(step.wait())
"""


@pytest.mark.long
def test_a_slurm_job_drains_before_its_time_is_up_and_is_queued_again(fleet):
    programs = fleet.folder / "programs"
    programs.mkdir()
    interpreter = sys.executable
    (programs / "srun").write_text(SRUN.replace("/usr/bin/env python3", interpreter))
    (programs / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {programs}/asked\n')
    for name in ("srun", "scontrol"):
        (programs / name).chmod(0o755)
    fleet.order("stay until go", step=8)
    fleet.submit(1)
    fleet.serve()
    places = [str(programs), str(Path(interpreter).parent), os.environ["PATH"]]
    own = {"PATH": os.pathsep.join(places), "SLURM_JOB_ID": "17", "FLEET_SLOTS": "1"}
    with (fleet.settings.home / "logs" / "job.log").open("wb") as log:
        job = subprocess.Popen(
            [str(DEPLOY / "slurm" / "worker.sbatch")],
            env={**fleet.environment(), **own},
            stdout=log,
            stderr=log,
        )
    step: list[psutil.Process] = []
    try:
        fleet.await_note("stay until go")
        step = tree_of(job.pid)
        job.send_signal(signal.SIGUSR1)
        assert job.wait(60) == 0
    finally:
        if job.poll() is None:
            step = tree_of(job.pid)
        signal_all(step, signal.SIGKILL)
    assert (programs / "asked").read_text() == "requeue 17\n"
    record = fleet.record()
    assert (record.state, record.failures, record.losses) == ("QUEUED", 0, 0)
    fleet.go()
    fleet.worker()
    fleet.await_over()
    fleet.assert_sound(attempts={0: 2})
