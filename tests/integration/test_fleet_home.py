"""A home belongs to one fleet; the two fleets of these tests are two databases of one server."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import gated_sampler
import pytest
import redis
from hand_fleet import Fleet, is_over, look_around, put, turn_until
from waiting import wait_until

from orchestrator.driving.driven import DrivenStudy
from orchestrator.driving.isolation import Isolation
from orchestrator.driving.service import Service
from orchestrator.submission import preflight
from orchestrator.submission.submit import submit
from workers.coordination import keys
from workers.coordination.studies import Studies
from workers.disk import fleet_home
from workers.disk.fleet_home import FleetHome, make_home
from workers.processes.cleaner import Cleaner
from workers.processes.registry import ProcessRegistry
from workers.protocol.errors import InvalidInputError
from workers.protocol.messages import Result
from workers.protocol.spec import StudySpec
from workers.protocol.states import TrialState


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def other_url(server, client):
    return server.url.removesuffix("/0") + "/1"


@pytest.fixture
def other(other_url):
    connection = redis.Redis.from_url(other_url, decode_responses=True)
    yield connection
    connection.close()


@pytest.fixture
def led(client, home):
    """A home that an orchestrator leads."""
    leader = FleetHome(client, home)
    leader.lead()
    yield leader
    leader.close()


def test_a_home_and_its_redis_carry_one_id(client, home, led):
    assert client.get(keys.FLEET) == (home / "fleet.id").read_text()
    assert led.lead() == led.join() == FleetHome(client, home).lead(), "a second one stands by"
    assert FleetHome(client, home).is_ours()


def test_a_home_that_is_made_is_its_owners_alone_and_one_that_is_there_stays_as_it_is(
    client, home, led, tmp_path
):
    assert home.stat().st_mode & 0o777 == 0o700
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2775)
    make_home(shared)
    assert shared.stat().st_mode & 0o7777 == 0o2775
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInputError, match=r"FLEET_HOME=.*file/home cannot be made"):
        make_home(tmp_path / "file" / "home")


def test_a_new_home_of_a_worker_becomes_its_fleets(client, led, tmp_path):
    worker = FleetHome(client, tmp_path / "of a worker")
    assert worker.join() == led.join()
    assert (tmp_path / "of a worker" / "fleet.id").exists()


def test_a_home_of_another_fleet_is_refused_by_all_with_the_way_out(
    home, led, other, other_url, settings, tmp_path, monkeypatch
):
    monkeypatch.setattr(preflight, "check_models", lambda *_: None)  # in a process of its own
    stranger = FleetHome(other, tmp_path / "elsewhere")
    stranger.lead()
    stranger.close()
    theirs = settings.model_copy(update={"redis_url": other_url})
    for refused in (
        FleetHome(other, home).join,
        FleetHome(other, home).lead,
        lambda: submit(StudySpec(name="s", metric="loss"), theirs),
        lambda: Service(theirs).__enter__(),
    ):
        with pytest.raises(InvalidInputError, match="FLEET_HOME=.* belongs to fleet .*Set FLEET"):
            refused()
    assert not Studies(other).names(), "nothing was enqueued"


def test_a_redis_that_lost_its_data_gets_the_homes_id_back_from_an_orchestrator(client, home, led):
    before = led.join()
    client.flushall()
    worker = FleetHome(client, home)
    assert worker.join() is None
    assert not worker.is_ours(), "until then nothing in the home is touched"
    assert led.try_lead() == before
    assert worker.is_ours()


def test_one_that_stands_by_brings_the_id_back_when_the_first_has_gone(client, home, led):
    before, second = led.join(), FleetHome(client, home)
    assert second.lead() == before
    client.flushall()
    assert second.try_lead() is None, "it is the first one's to do"
    led.close()
    assert second.try_lead() == before
    second.close()


@pytest.mark.parametrize("spoilt", ["a directory", "no id"])
def test_an_id_that_cannot_be_read_is_one_clear_error_or_waited_for(
    client, home, settings, spoilt, tmp_path
):
    settings = settings.model_copy(update={"home": home})
    fleet, file, id_of_it = Fleet(client, settings, tmp_path), home / "fleet.id", home / "kept"
    put(fleet, "s")
    with Service(settings) as service:
        turn_until(service, Studies(client).leases("s").queued, "it is driven")
        file.rename(id_of_it)
        if spoilt == "a directory":
            file.mkdir()
        else:
            file.write_text("what is this")

        def said():
            return "fleet.id" in (Studies(client).facts.get("s", "stalled") or "")

        turn_until(service, said, "it is said")
        for start in (Service(settings).__enter__, FleetHome(client, home).join):
            with pytest.raises(InvalidInputError, match="fleet.id.*FLEET_HOME"):
                start()
        assert not FleetHome(client, home).is_ours()
        if spoilt == "a directory":
            file.rmdir()
        id_of_it.rename(file)
        turn_until(service, lambda: is_over(fleet, "s"), "it goes on")


def test_a_refusal_is_said_though_a_turn_that_was_under_way_publishes_after_it(
    client, home, settings, tmp_path, monkeypatch
):
    settings = settings.model_copy(update={"home": home})
    put(Fleet(client, settings, tmp_path), "s")
    publish, has_come, gate = DrivenStudy.publish, threading.Event(), threading.Event()
    has_published = threading.Event()
    shows, was_refused = Isolation.show_refusal, threading.Event()

    def publish_late(*arguments, **named):
        has_come.set()
        gate.wait(60)
        status = publish(*arguments, **named)
        has_published.set()
        return status

    def show(*arguments):
        shows(*arguments)
        was_refused.set()

    monkeypatch.setattr(DrivenStudy, "publish", publish_late)
    monkeypatch.setattr(Isolation, "show_refusal", show)
    with Service(settings) as service:
        turn_until(service, has_come.is_set, "a turn is about to publish")
        (home / "fleet.id").write_text("what is this")
        turn_until(service, was_refused.is_set, "the home is refused")
        gate.set()
        wait_until(has_published.is_set, "it has published")
        stalled = partial(Studies(client).facts.get, "s", "stalled")
        turn_until(service, lambda: "fleet.id" in (stalled() or ""), "it is said")
        look_around(service)
        assert "fleet.id" in stalled()


@pytest.mark.parametrize("lapses", [False, True], ids=["in its right", "whose right runs out"])
def test_a_study_whose_turn_does_not_end_is_told_too_what_is_refused_to_all_and_when_it_is_not(
    client, home, settings, tmp_path, lapses
):
    settings = gated_sampler.allowed(settings.model_copy(update={"home": home}))
    fleet, file = Fleet(client, settings, tmp_path), home / "fleet.id"
    put(fleet, "hangs", sampler=gated_sampler.SAMPLER)
    stalled = partial(Studies(client).facts.get, "hangs", "stalled")
    with gated_sampler.closed(), Service(settings) as service:
        turn_until(service, gated_sampler.asked, "it is at a turn")
        id_of_it = file.read_text()
        file.write_text("what is this")
        turn_until(service, lambda: "fleet.id" in (stalled() or ""), "it is said")
        assert "fleet.id" in service.status("hangs").stalled
        if lapses:  # as where it is refused for longer than a lease
            client.delete(keys.lead("hangs"))
            service._roster.drivers["hangs"].held_at = -math.inf
        file.write_text(id_of_it)
        turn_until(service, lambda: not stalled(), "it is said no more")
        assert not gated_sampler.gate.is_set()
        assert lapses or not service.status("hangs").stalled
        gated_sampler.gate.set()
        turn_until(service, lambda: is_over(fleet, "hangs"), "it goes on")


def test_what_is_refused_to_an_orchestrator_is_not_shown_of_a_study_that_another_leads_by_now(
    client, home, settings, tmp_path
):
    settings = settings.model_copy(update={"home": home})
    fleet, facts = Fleet(client, settings, tmp_path), Studies(client).facts
    for name in ("ours", "theirs"):
        put(fleet, name)
    with Service(settings) as service:
        turn_until(service, lambda: facts.get("theirs", "status"), "both are driven")
        client.set(keys.lead("theirs"), "elsewhere:boot:1:1")
        (home / "fleet.id").write_text("what is this")
        ours = partial(facts.get, "ours", "stalled")
        turn_until(service, lambda: "fleet.id" in (ours() or ""), "it is said")
        service.turn()
        assert facts.get("theirs", "stalled") is None


def test_an_empty_redis_gets_no_home_that_an_orchestrator_on_another_one_leads(
    home, led, other, monkeypatch
):
    monkeypatch.setattr(fleet_home, "_PATIENCE_SECONDS", 0.2)
    with pytest.raises(InvalidInputError, match="led by an orchestrator on another Redis: set"):
        FleetHome(other, home).lead()
    assert other.get(keys.FLEET) is None


def test_orchestrators_that_start_at_once_agree(client, home, tmp_path):
    homes = [FleetHome(client, home) for _ in range(4)]
    homes += [FleetHome(client, tmp_path / f"home-{each}") for each in range(4)]
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(FleetHome.lead, homes))
    assert set(ids) == {client.get(keys.FLEET)}
    for each in homes:
        each.close()


@pytest.mark.parametrize("text", ["", "no id", "\0" * 32])
def test_a_damaged_id_is_an_error_that_names_the_file(client, home, led, text):
    (home / "fleet.id").write_text(text)
    with pytest.raises(InvalidInputError, match=r"fleet\.id holds .*remove the file"):
        FleetHome(client, home).join()


def test_a_second_fleet_in_a_home_removes_nothing_of_the_firsts(home, led, other, settings):
    """Its study has the same name, and its trial has ended."""
    checkpoint = home / "checkpoints" / "s" / "0" / "7" / "step-000000001"
    checkpoint.mkdir(parents=True)
    other.set(keys.FLEET, "f" * 32)
    studies = Studies(other)
    studies.submit(StudySpec(name="s"))
    leases = studies.leases("s")
    leases.enqueue(0, {})
    grant = leases.claim(0, "o", 45.0)
    leases.commit(0, grant.token, TrialState.COMPLETE, Result(values=[0.5]))
    cleaner = Cleaner(other, ProcessRegistry(other, settings.times), settings)
    cleaner.sweep_host()
    assert checkpoint.exists()
    other.set(keys.FLEET, led.join())
    cleaner.sweep_host()
    assert not checkpoint.exists(), "and its own fleet's cleaner would"
    cleaner.close()


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "orchestrator.cli", "serve"],
        [str(Path(sys.executable).with_name("celery")), "-A", "workers", "worker"],
    ],
    ids=["serve", "worker"],
)
def test_what_is_started_in_the_wrong_home_says_so_and_ends(
    command, led, other, other_url, settings
):
    other.set(keys.FLEET, "f" * 32)
    theirs = settings.model_copy(update={"redis_url": other_url, "slots": 1})
    ended = subprocess.run(
        command,
        env={**os.environ, **theirs.to_environment()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    output = ended.stdout + ended.stderr
    assert ended.returncode == 2
    assert "belongs to fleet" in output
    assert "Traceback" not in output
