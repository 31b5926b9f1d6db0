"""`trialfleet events` and `explain`: what they print, from the file, from Redis or neither."""

from __future__ import annotations

import json
import os

import pytest
from hand_fleet import Fleet, turn_until
from rich.console import Console
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.commands import events as events_commands
from orchestrator.handle import StudyHandle
from orchestrator.storage.event_file import events_file
from workers import passwords
from workers.coordination import keys
from workers.protocol.errors import (
    InvalidInputError,
    RedisUnavailableError,
    StudyNotKnownError,
)
from workers.protocol.events import Cause
from workers.protocol.messages import Result
from workers.protocol.states import TrialState


@pytest.fixture
def say(settings, monkeypatch):
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)

    def said(*words):
        found = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=True)
        if found.exception is not None and not isinstance(found.exception, SystemExit):
            raise found.exception
        noted.append(found.stderr)
        return found.stdout

    noted = []
    said.noted = noted
    return said


@pytest.fixture
def study(client, settings, tmp_path):
    """Three trials: one complete after a pause, one that failed, one that never began."""
    fleet = Fleet(client, settings, tmp_path)
    fleet.submit(trials=3)
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.is_queued(0), "the first is enqueued")
        fleet.leases.release(0, fleet.claim(0).token, cause=Cause.PAUSED)
        fleet.commit(0, 0.5)
        turn_until(service, lambda: fleet.leases.is_queued(1), "the second is enqueued")
        failed = Result(error="ValueError: no")
        fleet.leases.commit(1, fleet.claim(1).token, TrialState.FAILED, failed, Cause.FAILED)
        turn_until(service, lambda: fleet.leases.is_queued(2), "the third is enqueued")
        StudyHandle("s", settings).stop()
        turn_until(service, lambda: service.is_done("s"), "the study is over")
    return fleet


def documents(text):
    return [json.loads(line) for line in text.splitlines()]


def test_events_are_lines_for_people_and_documents_for_programs(study, say):
    told = say("events", "s")
    for part in ("trial 0      claimed", "the study was paused", "COMPLETE 0.5", "ValueError: no"):
        assert part in told
    found = documents(say("events", "s", "--json"))
    assert len(found) == len(told.splitlines())
    assert {document["study"] for document in found} == {"s"}
    assert len({document.get("generation") for document in found} - {None}) == 1


def test_events_can_be_asked_for_by_trial_by_kind_and_by_time(study, say):
    found = documents(say("events", "s", "--trial", 0, "--kind", "claimed", "--json"))
    assert [(each["kind"], each["attempt"]) for each in found] == [("claimed", 1), ("claimed", 2)]
    both = documents(say("events", "s", "--kind", "wished", "--kind", "turned", "--json"))
    assert {each["kind"] for each in both} == {"wished", "turned"}
    middle = documents(say("events", "s", "--json"))[5]
    since = documents(say("events", "s", "--since", middle["time"], "--json"))
    assert since[0]["id"] == middle["id"] or since[0]["time"] == middle["time"]
    assert documents(say("events", "s", "--since", "1h", "--json"))
    assert say("events", "s", "--since", "2200-01-01") == "no such event is known here\n"


REFUSED = [
    (["s", "--kind", "claimd"], "did you mean 'claimed'"),
    (["s", "--kind", "zzz"], "there are: asked, claimed"),
    (["s", "--trial", "-1"], "--trial -1: trials are numbered from 0"),
    (["s", "--since", "yesterday"], "--since 'yesterday': neither a duration"),
    (["sj"], "did you mean 's'"),
    (["../s"], "no study has such a name"),
]


def test_what_cannot_be_asked_for_is_refused_by_its_name(study, say):
    for words, told in REFUSED:
        with pytest.raises(InvalidInputError) as refused:
            say("events", *words)
        assert told in str(refused.value)


@pytest.mark.parametrize("words", [("explain", "s", 1), ("events", "s")], ids=["explain", "events"])
@pytest.mark.parametrize("form", [(), ("--json",)], ids=["text", "json"])
def test_no_secret_of_an_error_is_told(study, say, monkeypatch, words, form):
    monkeypatch.setenv("SOME_API_KEY", "ValueError: no")
    passwords.learn_environment(os.environ)
    told = say(*words, *form)
    assert "***" in told
    assert "ValueError: no" not in told


def test_a_trial_is_explained_from_its_events_and_its_results(study, say):
    told = say("explain", "s", 0)
    assert told.startswith("trial 0 of s: COMPLETE with 0.5 after 2 attempts\nparameters: x=")
    assert "the study was paused, and it gave the trial back" in told
    assert "ended FAILED" in say("explain", "s", 1)
    assert "the objective failed: ValueError: no" in say("explain", "s", 1)
    assert "nobody is to begin it any more" in say("explain", "s", 2)
    life = json.loads(say("explain", "s", 0, "--json"))
    assert [each["cause"] for each in life["attempts"]] == ["paused", None]
    cost = life["cost"]
    on_slots = sum(cost[f"{use}_seconds"] for use in ("useful", "warming", "lost"))
    assert on_slots == pytest.approx(life["held_seconds"])
    assert cost["running_seconds"] == cost["paused_seconds"] == 0
    with pytest.raises(InvalidInputError, match="study 's' has 3 trials, from 0"):
        say("explain", "s", 3)
    with pytest.raises(StudyNotKnownError, match="did you mean 's'"):
        say("explain", "sx", 0)


@pytest.mark.usefixtures("study")
def test_on_a_terminal_the_sentences_of_a_trial_are_broken_between_words(say, monkeypatch):
    whole = say("explain", "s", 0)
    monkeypatch.setattr(
        events_commands,
        "open_console",
        lambda **_: Console(force_terminal=True, width=60, highlight=False),
    )
    told = say("explain", "s", 0)
    assert max(map(len, whole.splitlines())) > 60
    assert max(map(len, told.splitlines())) <= 60
    assert told.split() == whole.split()


def test_what_is_news_is_shown_where_there_is_no_file(study, say, client):
    here = say("events", "s", "--json")
    events_file(study.settings.home, "s").unlink()
    assert say("events", "s", "--json") == here
    client.delete(keys.events("s"))
    assert say("events", "s") == "no such event is known here\n"
    told = say("explain", "s", 1)
    assert told.startswith("trial 1 of s: FAILED")
    assert "no event of it is left" in told
    assert "error: ValueError: no" in told


def test_who_sees_what_is_news_alone_is_told_so(study, say):
    say("events", "s", "--json")
    assert say.noted[-1] == ""
    events_file(study.settings.home, "s").unlink()
    say("events", "s", "--json")
    assert "what follows is what is news" in say.noted[-1]


def test_the_file_is_shown_where_redis_does_not_answer(study, say, monkeypatch):
    here = say("events", "s", "--json")
    monkeypatch.setenv("FLEET_REDIS_URL", "redis://127.0.0.1:1/0")
    assert say("events", "s", "--json") == here
    with pytest.raises(RedisUnavailableError):
        say("events", "s", "--follow")
    events_file(study.settings.home, "s").unlink()
    with pytest.raises(RedisUnavailableError):
        say("events", "s")


def test_following_a_study_that_is_over_tells_all_and_ends(study, say):
    assert say("events", "s", "--follow") == say("events", "s", "--json")


def test_the_fleets_processes_have_events_of_their_own(study, say):
    assert "born" in say("events")
    assert {each["kind"] for each in documents(say("events", "--json"))} >= {"born", "left"}


def test_a_damaged_file_is_read_as_far_as_it_can_be(study, say):
    here = documents(say("events", "s", "--json"))
    path = events_file(study.settings.home, "s")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"\xff\n{}\n[]\n".join(lines) + b'{"id":"9')
    assert documents(say("events", "s", "--json")) == here
