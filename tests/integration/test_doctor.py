"""`trialfleet doctor` on a real Redis, real disks, and a fleet that really runs a trial for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
from disks import fill, small_disk
from one_process_fleet import OneProcessFleet
from waiting import wait_until

from orchestrator.doctor import disks, redis_server, trial
from orchestrator.doctor.examination import Examination
from orchestrator.doctor.findings import Level
from orchestrator.fleet import Fleet
from orchestrator.local.servers import free_port
from workers.coordination.studies import Studies
from workers.disk.fleet_home import FleetHome
from workers.protocol.errors import InvalidInputError, StudyNotKnownError
from workers.protocol.spec import StudySpec
from workers.settings import Settings

SECRET = "a secret of this fleet"


def findings(settings, study=None, *, with_trial=False):
    """By subject and what was looked at; of several, the first."""
    found = {}
    for group in Examination(settings, study, with_trial).groups():
        for finding in group.findings:
            found.setdefault((group.subject, finding.looked_at), finding)
    return found


@contextmanager
def configured(client, **options):
    before = {name: client.config_get(name)[name] for name in options}
    try:
        for name, value in options.items():
            client.config_set(name, value)
        yield
    finally:
        for name, value in before.items():
            client.config_set(name, value)


def test_a_server_that_throws_trials_away_or_belongs_to_others_is_found(client, settings):
    options = {"maxmemory-policy": "allkeys-lru", "appendonly": "no", "maxmemory": "1mb"}
    with configured(client, **options):
        facts = redis_server.look(client, settings)
    assert redis_server.eviction(facts).level is Level.ERROR
    assert redis_server.persistence(facts).level is Level.WARNING
    assert redis_server.memory(facts).level is not Level.OK
    client.set("_kombu.binding.celery", 1)
    client.set("fleet:id", "0" * 32)
    facts = redis_server.look(client, settings)
    assert "_kombu.binding.celery" in redis_server.tenants(facts).told
    FleetHome(client, settings.home).join()
    client.set("fleet:id", "1" * 32)
    told = redis_server.tenants(redis_server.look(client, settings))
    assert told.level is Level.ERROR
    assert "belongs to fleet 00000000" in told.told
    assert told.fix.startswith("Set FLEET_HOME to another directory")


def test_a_server_as_it_should_be_leaves_nothing_to_say(client, settings):
    facts = redis_server.look(client, settings)
    told = [check(facts) for check in redis_server.CHECKS]
    assert [each for each in told if each.level is not Level.OK] == []
    assert client.dbsize() == 0
    assert not settings.home.exists(), "who looks makes no home"


def test_a_user_with_too_few_rights_is_told_the_line_that_gives_them(client, settings, server):
    rules = ["reset", "on", ">PASSWORD", "~fleet:*", "+@all", "-hget", "-info"]
    client.execute_command("ACL", "SETUSER", "few", *rules)
    try:
        url = f"redis://few:PASSWORD@127.0.0.1:{server.port}/0"
        found = findings(settings.model_copy(update={"redis_url": url}))["Redis", "rights"]
    finally:
        client.execute_command("ACL", "DELUSER", "few")
    assert found.level is Level.ERROR
    assert "user 'few' lacks" in found.told
    assert found.fix == "ACL SETUSER few +hget +info"


def test_on_a_machine_with_nothing_it_says_what_is_missing_and_makes_nothing(tmp_path):
    settings = Settings(home=tmp_path / "home", cache=tmp_path / "cache")
    url = f"redis://127.0.0.1:{free_port()}/0"
    found = findings(settings.model_copy(update={"redis_url": url}))
    subjects = list(dict.fromkeys(subject for subject, _ in found))
    assert subjects == ["installation", "host", "disks", "Redis"]
    assert found["Redis", "connection"].level is Level.ERROR
    assert found["disks", "FLEET_HOME"].level is Level.OK
    assert list(tmp_path.iterdir()) == []


def test_without_a_fleet_it_says_who_is_missing_and_runs_no_trial(client, settings):
    found = findings(settings, with_trial=None)
    for who in ("orchestrator", "workers"):
        assert found["fleet", who].level is Level.ERROR
    assert "trial" not in {subject for subject, _ in found}
    assert findings(settings, with_trial=True)["trial", "a trial"].level is Level.ERROR
    with pytest.raises(StudyNotKnownError):
        findings(settings, "nosuch")
    Studies(client).submit(StudySpec(name="s", objective="train:objective"))
    found = findings(settings, "s")
    assert found["study s", "progress"].told == "no orchestrator runs"
    with pytest.raises(InvalidInputError):
        findings(settings.model_copy(update={"redis_url": "sentinel://a"}))


def test_a_disk_that_is_nearly_full_or_takes_nothing_is_found(tmp_path, settings):
    with small_disk(tmp_path / "small", 256) as filler:
        small = settings.model_copy(update={"home": tmp_path / "small"})
        fill(filler)
        assert disks.home(disks.look(small)).level is Level.WARNING
        assert [path.name for path in small.home.iterdir()] == [filler.name]
    (tmp_path / "file").touch()
    amiss = settings.model_copy(update={"home": tmp_path / "file" / "home"})
    assert disks.home(disks.look(amiss)).level is Level.ERROR
    settings.home.mkdir(mode=0o755)
    assert disks.home_is_private(disks.look(settings)).level is Level.WARNING
    settings.home.chmod(0o700)
    facts = disks.look(settings)
    assert [check(facts).level for check in disks.CHECKS] == [Level.OK] * len(disks.CHECKS)


def test_a_store_is_tried_and_nothing_is_left_in_it(tmp_path, settings):
    place = tmp_path / "store"
    with_store = settings.model_copy(update={"store": f"file://{place}"})
    found = disks.store(disks.look(with_store))
    assert found.level is Level.ERROR
    assert "no such directory" in found.told
    place.mkdir()
    assert disks.store(disks.look(with_store)).level is Level.OK
    assert [path for path in place.rglob("*") if path.is_file()] == []


@pytest.fixture
def secret_settings(settings):
    return Settings.build({**settings.model_dump(), "secret": SECRET})


@pytest.fixture
def fleet(client, server, secret_settings, tmp_path):
    with OneProcessFleet(client, server, secret_settings, tmp_path) as started:
        yield started


@contextmanager
def doctor(settings, folder, *arguments):
    environment = {**os.environ, **settings.to_environment()}
    command = [sys.executable, "-m", "orchestrator.cli", "doctor", *arguments]
    with (folder / "doctor.json").open("w+") as sink:
        process = subprocess.Popen(command, env=environment, stdout=sink)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def ours(client):
    return [name for name in Studies(client).names() if name.startswith("doctor-")]


def test_a_trial_goes_through_the_fleet_and_nothing_of_it_is_left(fleet, client, tmp_path):
    with doctor(fleet.config, tmp_path, "--json", "--trial") as process:

        def has_ended():
            for name in ours(client):
                fleet.run_queued(name)
            return process.poll() is not None

        fleet.until(has_ended, "the doctor has ended")
    told = json.loads((tmp_path / "doctor.json").read_text())
    found = {group["subject"]: group["findings"] for group in told["groups"]}
    (tried,) = found["trial"]
    assert tried["level"] == "ok", tried
    agreed = {each["looked_at"]: each["level"] for each in found["fleet"]}
    assert agreed["FLEET_SECRET"] == "ok"
    assert ours(client) == []
    assert list((fleet.config.home / "studies").iterdir()) == []
    assert list(client.scan_iter("fleet:{doctor-*")) == []


def test_a_trial_that_cannot_be_handed_in_is_told_as_one(fleet, client):
    seen = Fleet(fleet.config, client)
    fleet.until(lambda: trial.has_fleet(tuple(seen.processes())), "it can be tried")
    with configured(client, **{"maxmemory-policy": "allkeys-lru"}):
        found = findings(fleet.config, with_trial=True)
    tried = found["trial", "a trial"]
    assert tried.looked_at == "a trial"
    assert "allkeys-lru" in tried.told


def test_whoever_has_another_secret_is_named(fleet):
    other = Settings.build({**fleet.config.model_dump(), "secret": "another secret of another"})
    found = findings(other)["fleet", "FLEET_SECRET"]
    assert found.level is Level.ERROR
    assert "this command" in found.told
    assert findings(fleet.config)["fleet", "FLEET_SECRET"].level is Level.OK


def test_a_doctor_that_is_ended_deletes_its_study_and_one_that_is_killed_leaves_it_to_the_next(
    fleet, client, tmp_path
):
    with doctor(fleet.config, tmp_path, "--trial") as process:
        wait_until(lambda: ours(client), "its study is there")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    assert ours(client) == []
    with doctor(fleet.config, tmp_path, "--trial") as process:
        wait_until(lambda: ours(client), "its study is there")
        process.kill()
        process.wait()
    with Fleet(fleet.config, client) as opened:
        trial.remove_leftovers(opened)
        assert ours(client) == []
