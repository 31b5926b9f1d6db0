"""`trialfleet studies` where no fleet runs: what the home has of them."""

from __future__ import annotations

import json

import pytest
from hand_fleet import UNRENEWED_SECONDS, Fleet, is_over, put, turn_until
from typer.testing import CliRunner

from orchestrator import fleet as fleet_module
from orchestrator.cli import app
from orchestrator.driving.service import Service
from orchestrator.fleet import Fleet as FleetOfSettings
from orchestrator.handle import StudyHandle
from orchestrator.storage.attributes import SPEC_ATTR
from workers.coordination.studies import Studies
from workers.protocol.errors import (
    RedisUnavailableError,
    StorageUnreadableError,
    StudyNotKnownError,
)
from workers.protocol.messages import Result
from workers.protocol.states import TrialState


@pytest.fixture
def say(settings, monkeypatch):
    """A command on a machine of these settings on which no Redis runs."""
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("FLEET_REDIS_URL")
    monkeypatch.setenv("COLUMNS", "300")

    def said(*words):
        found = CliRunner().invoke(app, words, catch_exceptions=True)
        if found.exception is not None:
            raise found.exception
        return found.stdout

    return said


@pytest.fixture
def home(client, settings, tmp_path):
    """One study that is over, one that was left with a trial to come, and one that is damaged."""
    fleet = Fleet(client, settings, tmp_path)
    put(fleet, "ended")
    put(fleet, "left", trials=3)
    left = Studies(client).leases("left")
    with Service(settings) as service:
        turn_until(service, lambda: is_over(fleet, "ended"), "the first is over")
        turn_until(service, lambda: left.is_queued(0), "the second is begun")
        token = left.claim(0, "hand", UNRENEWED_SECONDS).token
        left.commit(0, token, TrialState.COMPLETE, Result(values=[0.5], busy_seconds=60.0))
        in_left = StudyHandle("left", settings)
        turn_until(service, lambda: in_left.status().trials["complete"], "some is told")
    journal = settings.home / "studies" / "damaged" / "journal.log"
    journal.parent.mkdir()
    journal.write_text("what is this\n")
    return settings.home


@pytest.mark.usefixtures("home")
def test_without_a_redis_the_studies_of_the_home_are_listed_as_status_has_them(say):
    found = {each["study"]: each for each in json.loads(say("studies", "--json"))}
    assert list(found) == ["damaged", "ended", "left"]
    for name in ("ended", "left"):
        assert found[name] == json.loads(say("status", name, "--json"))
    assert found["ended"]["state"] == "finished"
    assert found["ended"]["best"]["value"] == 0.5
    assert "no fleet runs here" in found["left"]["waits_for"][0]
    assert "journal.log cannot be read: line 1 is no entry of" in found["damaged"]["reason"]
    table = [line.split() for line in say("studies").splitlines()]
    assert ["ended", "finished", "2/2", "0", "0.5"] in table
    assert ["left", "running"] in [line[:2] for line in table]


_NO_LOG = ("{what", "[]", '{"op_code": 99}', "[" * 100_000)


def test_of_a_journal_that_is_damaged_the_line_is_named(say, home):
    journal = home / "studies" / "left" / "journal.log"
    lines = journal.read_text().splitlines()
    for verb, line in zip(("status", "export", "best", "report"), _NO_LOG, strict=True):
        journal.write_text("\n".join([*lines[:3], line, *lines[3:]]) + "\n")
        named = r"left/journal\.log cannot be read: line 4 is no entry"
        with pytest.raises(StorageUnreadableError, match=named):
            say(verb, "left")


def test_of_a_specification_that_is_damaged_the_study_is_named(say, home):
    journal = home / "studies" / "left" / "journal.log"
    spoilt = {"op_code": 2, "worker_id": "w", "study_id": 0, "user_attr": {SPEC_ATTR: "{what"}}
    with journal.open("a") as file:
        file.write(json.dumps(spoilt) + "\n")
    with pytest.raises(StorageUnreadableError, match="study 'left': its specification"):
        say("status", "left")


def test_a_study_of_which_nothing_is_left_is_not_meant_by_its_own_name(say, home):
    (home / "studies" / "left" / "journal.log").write_text("")
    with pytest.raises(StudyNotKnownError) as refused:
        say("status", "left")
    assert "did you mean" not in str(refused.value)


def test_a_home_without_studies_says_so(say):
    assert say("studies", "--json") == "[]\n"
    assert say("studies").startswith("no studies yet")


@pytest.mark.usefixtures("home")
def test_a_redis_that_was_named_and_does_not_answer_is_no_reason_to_look_elsewhere(
    say, monkeypatch
):
    monkeypatch.setenv("FLEET_REDIS_URL", "redis://127.0.0.1:1/0")
    with pytest.raises(RedisUnavailableError):
        say("studies")


@pytest.mark.usefixtures("home")
def test_a_redis_that_knows_none_of_them_hides_no_study_of_the_home(
    say, client, settings, monkeypatch
):
    client.flushdb()
    monkeypatch.setattr(fleet_module, "connect", lambda: FleetOfSettings(settings, client))
    assert [each["study"] for each in json.loads(say("studies", "--json"))] == [
        "damaged", "ended", "left",
    ]  # fmt: skip
