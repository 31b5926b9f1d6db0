"""What takes its time in one study, or never ends, holds up no other one, and loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import gated_sampler
import psutil
import pytest
from hand_fleet import Fleet, is_over, look_around, put, turn_until, work
from waiting import wait_until

from orchestrator.driving import deletion
from orchestrator.driving.aside_sampler import AsideSampler
from orchestrator.driving.deletion import try_delete
from orchestrator.driving.driven import DrivenStudy
from orchestrator.driving.driver import StudyDriver
from orchestrator.driving.service import Service
from orchestrator.handle import StudyHandle
from workers.coordination import keys
from workers.coordination.deletions import Deletions
from workers.coordination.identity import ProcessIdentity
from workers.coordination.studies import Studies


@pytest.fixture
def fleet(client, settings, tmp_path):
    return Fleet(client, gated_sampler.allowed(settings), tmp_path)


@contextmanager
def held_up(monkeypatch, where, name, study):
    """Have a function wait where it is called for a study; gives whether it does, and a gate."""
    gate, has_come, function = threading.Event(), threading.Event(), getattr(where, name)

    def waits(*arguments):
        if study in {
            each if isinstance(each, str) else getattr(each, "name", "") for each in arguments
        }:
            has_come.set()
            gate.wait(60)
        return function(*arguments)

    monkeypatch.setattr(where, name, waits)
    try:
        yield has_come, gate
    finally:
        gate.set()


def awaiting_renewal(fleet, study):
    """Whether the right to a study, which is there, has been renewed since this call."""
    assert fleet.client.persist(keys.lead(study)), "nobody else may have it yet"
    return lambda: fleet.client.pttl(keys.lead(study)) > 0


def test_a_big_deletion_holds_up_no_other_study(fleet, monkeypatch):
    put(fleet, "big")
    with Service(fleet.settings) as service:
        studies = Studies(fleet.client)
        turn_until(service, studies.leases("big").queued, "it is driven")
        Deletions(fleet.client).begin("big")
        with held_up(monkeypatch, deletion, "remove_results", "big") as (has_come, gate):
            turn_until(service, has_come.is_set, "it is being deleted")
            put(fleet, "other")
            turn_until(service, lambda: is_over(fleet, "other"), "the other one is over")
            assert not gate.is_set()
            assert studies.exists("big")
        turn_until(service, lambda: not studies.exists("big"), "it is deleted")
        put(fleet, "big")
        turn_until(service, studies.leases("big").queued, "a new one of its name is driven")
        turn_until(service, lambda: fleet.client.get(keys.lead("big")), "with the right to it")


def test_closing_a_study_holds_up_no_other_one(fleet, monkeypatch):
    put(fleet, "big")
    with (
        Service(fleet.settings) as service,
        held_up(monkeypatch, DrivenStudy, "close", "big") as (has_come, gate),
    ):
        turn_until(service, lambda: is_over(fleet, "big") and has_come.is_set(), "it is closed")
        put(fleet, "other")
        turn_until(service, lambda: is_over(fleet, "other"), "the other one is over")
        assert not gate.is_set()
        assert fleet.client.get(keys.lead("big")), "nobody else may have it yet"
        Studies(fleet.client).submit(
            Studies(fleet.client).spec("big").model_copy(update={"trials": 3})
        )
        look_around(service, 1.5)
        gate.set()
        turn_until(service, lambda: is_over(fleet, "big"), "it goes on where it was")
    assert len(Studies(fleet.client).facts.get("big", "status")["recent"]) == 3


def test_the_right_to_a_study_is_held_for_as_long_as_its_closing_takes(fleet, monkeypatch):
    put(fleet, "big")
    with (
        Service(fleet.settings) as service,
        held_up(monkeypatch, DrivenStudy, "close", "big") as (has_come, gate),
    ):
        turn_until(service, lambda: is_over(fleet, "big") and has_come.is_set(), "it is closed")
        for _ in range(2):
            renewed = awaiting_renewal(fleet, "big")
            turn_until(service, renewed, "it is renewed")
        gate.set()
        turn_until(service, lambda: not fleet.client.get(keys.lead("big")), "then it is free")


def test_the_rights_of_an_orchestrator_that_ends_are_held_until_its_last_turns_return(fleet):
    put(fleet, "s", sampler=gated_sampler.SAMPLER)
    with gated_sampler.closed():
        service = Service(fleet.settings).__enter__()
        turn_until(service, gated_sampler.asked, "it is at a turn")
        ending = threading.Thread(target=service.__exit__, args=(None, None, None))
        ending.start()
        for _ in range(2):
            wait_until(awaiting_renewal(fleet, "s"), "it is renewed")
        gated_sampler.gate.set()
        ending.join()
    assert fleet.client.get(keys.lead("s")) is None


def test_a_right_that_was_given_back_is_not_taken_again(fleet, monkeypatch):
    put(fleet, "big")
    release, given, gate = StudyDriver.release, threading.Event(), threading.Event()

    def release_and_wait(driver):
        release(driver)
        given.set()
        gate.wait(60)

    monkeypatch.setattr(StudyDriver, "release", release_and_wait)
    with Service(fleet.settings) as service:
        turn_until(service, Studies(fleet.client).leases("big").queued, "it is driven")
        service._roster.leave("big")
        wait_until(given.is_set, "it is given back")
        service._roster.endings.keep_rights(0.0)
        assert "big" in service._roster.endings
        assert fleet.client.get(keys.lead("big")) is None
        gate.set()


def test_studies_with_slow_samplers_however_many_hold_up_no_other_one(fleet):
    for index in range(20):
        put(fleet, f"slow-{index}", sampler=gated_sampler.SAMPLER)
    fleet.pretend_worker(slots=40)
    with gated_sampler.closed(), Service(fleet.settings) as service:
        turn_until(service, lambda: len(set(gated_sampler.asked_of)) == 20, "all are asked")
        put(fleet, "quick")
        turn_until(service, lambda: is_over(fleet, "quick"), "the quick one is over")
        assert not gated_sampler.gate.is_set()
        gated_sampler.gate.set()
        leases = [Studies(fleet.client).leases(f"slow-{index}") for index in range(20)]
        turn_until(service, lambda: all(each.queued() for each in leases), "they go on")


def test_a_slow_sampler_does_not_hold_up_what_its_own_trials_tell(fleet):
    fleet.pretend_worker(slots=64)
    put(fleet, "slow", sampler=gated_sampler.SAMPLER, trials=1000)
    leases = Studies(fleet.client).leases("slow")
    with gated_sampler.closed(patience=0.3), Service(fleet.settings) as service:
        turn_until(service, leases.queued, "the first is enqueued")
        assert len(gated_sampler.asked_of) < 64, "and not all of them are asked for by then"
        gated_sampler.gate.set()
        turn_until(service, lambda: len(leases.queued()) == 65, "all are in the end")


def test_a_slow_sampler_draws_in_a_process_that_ends_with_its_study_and_may_be_killed(
    fleet, monkeypatch
):
    monkeypatch.setattr(AsideSampler, "_is_slow", lambda sampler: True)
    put(fleet, "s", sampler={"type": "tpe", "seed": 1, "n_startup_trials": 2}, trials=10**4)
    pids = set()

    def is_aside():
        work(fleet, "s")
        aside = service._roster.drivers["s"].study._sampler._aside
        if aside.is_aside:
            environment = Path(f"/proc/{aside._process.pid}/environ").read_bytes()
            assert b"FLEET_SECRET" not in environment, "it needs none"
            assert b"a-password" not in environment
            pids.add(aside._process.pid)
        return len(pids)

    def num_trials():
        work(fleet, "s")
        return service.status("s").num_ended

    with Service(fleet.settings) as service:
        turn_until(service, lambda: service.status("s"), "it is driven")
        turn_until(service, lambda: is_aside() == 1, "a process draws")
        drawn = num_trials()
        turn_until(service, lambda: num_trials() > drawn + 5, "it does")
        os.kill(*pids, signal.SIGKILL)
        turn_until(service, lambda: is_aside() == 2, "another one draws")
    assert not any(map(psutil.pid_exists, pids))
    stored = StudyHandle("s", fleet.settings).study.get_trials(deepcopy=False)
    assert [trial.number for trial in stored] == list(range(len(stored)))
    assert all("x" in trial.params for trial in stored)
    assert service.status("s") is None


def test_the_right_to_a_study_is_held_until_its_last_turn_has_returned(fleet):
    put(fleet, "s", sampler=gated_sampler.SAMPLER)
    stranger = ProcessIdentity.current()._replace(host="elsewhere")
    with gated_sampler.closed(), Service(fleet.settings) as service:
        turn_until(service, gated_sampler.asked, "it is at a turn")
        Deletions(fleet.client).begin("s")
        look_around(service, 2.5)
        assert fleet.client.get(keys.lead("s")) is not None
        assert not try_delete(fleet.client, fleet.settings, "s", stranger)
        assert Studies(fleet.client).exists("s")
        gated_sampler.gate.set()
        turn_until(service, lambda: not Studies(fleet.client).exists("s"), "it is deleted")
    assert [key for key in fleet.client.keys("*") if "{s}" in key] == []


def test_a_sampler_that_never_answers_does_not_keep_serve_from_ending(fleet, tmp_path):
    put(fleet, "hung", sampler=gated_sampler.SAMPLER)
    environment = {**os.environ, **fleet.settings.to_environment()}
    environment["PYTHONPATH"] = str(Path(gated_sampler.__file__).parent)
    environment[gated_sampler.ASKED_FILE] = str(tmp_path / "asked")
    command = [sys.executable, "-m", "orchestrator", "serve"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_until((tmp_path / "asked").exists, "it is asked")
        process.terminate()
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "left in the midst of a turn that does not end: hung" in said
    with gated_sampler.closed(), Service(fleet.settings) as service:
        gated_sampler.gate.set()
        turn_until(service, lambda: is_over(fleet, "hung"), "nothing is lost")
