"""Orchestrators of several hosts, which share a PostgreSQL."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import psutil
import redis
from fault_fleet import undisturbed_loss
from postgres import PASSWORD, Postgres
from waiting import wait_until

from orchestrator.handle import StudyHandle


def test_an_orchestrator_of_another_host_takes_over_and_loses_nothing(fleet):
    with Postgres() as postgres:
        fleet.settings = fleet.settings.model_copy(update={"storage": postgres.url})
        for number in (2, 3):  # the study is not to be over before the other one is there
            fleet.order("stay until go", number=number)
        fleet.submit(6)
        first = fleet.serve()
        fleet.worker(slots=2)
        fleet.await_note("starts", number=1)
        second = fleet.serve(FLEET_HOME=str(fleet.folder / "of the other host"))
        wait_until(lambda: fleet.events("study_not_driven"), "the other one waits")
        fleet.go()
        told = shown(first.pid), shown(second.pid)
        first.send_signal(signal.SIGKILL)
        wait_until(lambda: len(fleet.events("study_driven")) == 2, "it takes over")
        fleet.await_note("starts", number=3)
        postgres.stop()
        wait_until(lambda: fleet.events("study_stalled"), "it misses the database")
        postgres.start()
        fleet.await_over()
        found = fleet.trials()
        assert [trial.state.name for trial in found] == ["COMPLETE"] * 6, "none asked for twice"
        assert [trial.value for trial in found] == [undisturbed_loss()] * 6
        attempts = [trial.user_attrs["trialfleet:attempt"] for trial in found]
        assert attempts == [1] * 6, "no trial noticed"
        assert PASSWORD not in " ".join(told)
        assert PASSWORD not in all_that_is_known(fleet)
        fleet.orchestrators[1].terminate()
        fleet.orchestrators[1].wait(60)


def test_orchestrators_share_the_studies_and_one_that_is_killed_leaves_its_own_to_the_other(fleet):
    names = {f"s-{index}" for index in range(4)}
    with Postgres() as postgres:
        fleet.settings = fleet.settings.model_copy(update={"storage": postgres.url})
        fleet.order("stay until go", number=1)
        for name in sorted(names):
            objective = f"{fleet.folder}/faulty.py:train"
            fleet.hand_in({"name": name, "objective": objective, "trials": 3})
        first = fleet.serve()
        wait_until(lambda: driven_by_each(fleet) == [4], "the only one has all")
        fleet.serve(FLEET_HOME=str(fleet.folder / "of the other host"))
        wait_until(lambda: driven_by_each(fleet) == [2, 2], "they share them")
        fleet.worker()
        fleet.await_note("stay until go", number=1)
        first.send_signal(signal.SIGKILL)
        first.wait()
        killed_at = time.monotonic()
        wait_until(lambda: driven_by_each(fleet)[-1] == 4, "the other one has all")
        assert time.monotonic() - killed_at < 2 * fleet.settings.times.lease
        fleet.go()
        for name in sorted(names):
            fleet.await_over(study=name)
            found = StudyHandle(name, fleet.settings).study.trials
            told = [(trial.state.name, trial.value) for trial in found]
            assert told == [("COMPLETE", undisturbed_loss())] * 3, "none lost, none doubled"
            assert {trial.user_attrs["trialfleet:attempt"] for trial in found} == {1}


def driven_by_each(fleet) -> list[int]:
    """How many studies each orchestrator drives that shares them."""
    shared = [entry.shares for entry in fleet.processes("orchestrator") if entry.shares]
    return sorted(sum(each.queues.values()) for each in shared)


def shown(pid: int) -> str:
    """What a look at a process shows anybody."""
    process = psutil.Process(pid)
    return f"{process.name()} {' '.join(process.cmdline())}"


def all_that_is_known(fleet) -> str:
    """All that Redis holds, and that the members told."""
    with redis.Redis.from_url(fleet.redis.url) as client:
        held = b" ".join(client.dump(key) or b"" for key in client.scan_iter())
    logs = [path.read_bytes() for path in Path(fleet.folder).rglob("*.log")]
    journals = [path.read_bytes() for path in Path(fleet.folder).rglob("appendonly*/*")]
    return b" ".join([held, *logs, *journals]).decode(errors="replace")
