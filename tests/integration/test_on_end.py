"""`on_end` of a study that is driven: told once each end, bounded, and never in the loop's way."""

from __future__ import annotations

import json

import pytest
from hand_fleet import Fleet, turn_until

from orchestrator.handle import StudyHandle
from workers.coordination.studies import Studies
from workers.settings import Settings


@pytest.fixture
def fleet(client, settings, tmp_path):
    allowing = Settings.build({**dict(settings), "on_end": ("*",)})
    return Fleet(client, allowing, tmp_path)


def drive_to_its_end(fleet, service):
    turn_until(service, fleet.leases.queued, "a trial waits")
    fleet.commit(max(fleet.leases.queued()), 0.5)
    turn_until(service, lambda: service.is_done("s"), "it is over, and was told")


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def test_the_end_is_told_once_and_again_when_the_study_was_extended(fleet, tmp_path, monkeypatch):
    monkeypatch.setenv("FLEET_SECRET", "a-secret-that-no-command-is-to-read")
    monkeypatch.setenv("FLEET_STORAGE", "postgresql://fleet:a-password@db/studies")
    monkeypatch.setenv("FLEET_REDIS_URL", "redis://:another-password@box:6379/0")
    command = f"cat >> {tmp_path}/told; echo >> {tmp_path}/told; env > {tmp_path}/environment"
    handle = fleet.submit(trials=1, on_end=command)
    with fleet.service() as service:
        drive_to_its_end(fleet, service)
        for _ in range(3):
            service.turn()
    assert [json.loads(line)["state"] for line in lines(tmp_path / "told")] == ["finished"]
    assert handle.status().end_problem is None
    with fleet.service() as service:  # the next orchestrator finds it told
        turn_until(service, lambda: service.is_done("s"), "it is over")
    assert len(lines(tmp_path / "told")) == 1
    variables = {line.partition("=")[0] for line in lines(tmp_path / "environment")}
    assert "FLEET_STUDY" in variables
    assert "FLEET_SECRET" not in variables
    fleet.submit(trials=2, on_end=command)
    with fleet.service() as service:
        drive_to_its_end(fleet, service)
    told = [json.loads(line)["trials"]["complete"] for line in lines(tmp_path / "told")]
    assert told == [1, 2]


def test_a_study_that_is_extended_while_its_end_is_told_has_its_next_end_told_too(fleet, tmp_path):
    told, go = tmp_path / "told", tmp_path / "go"
    command = f"cat >> {told}; echo >> {told}; until test -e {go}; do sleep 0.1; done"
    handle = fleet.submit(trials=1, on_end=command)
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "a trial waits")
        fleet.commit(0, 0.5)
        turn_until(service, lambda: lines(told), "its end is being told")
        handle.extend(trials=2)
        turn_until(service, fleet.leases.queued, "it goes on")
        fleet.commit(1, 0.5)
        turn_until(service, lambda: service.status("s").is_over, "it is over again")
        assert not service.is_done("s")
        go.touch()
        turn_until(service, lambda: service.is_done("s"), "it was told of")
    assert [json.loads(line)["trials"]["complete"] for line in lines(told)] == [1, 2]


def test_an_end_that_was_being_told_when_the_orchestrator_ended_is_told_again(fleet, tmp_path):
    command = f"echo begun >> {tmp_path}/told; test -e {tmp_path}/go || sleep 100"
    handle = fleet.submit(trials=1, on_end=command)
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "a trial waits")
        fleet.commit(0, 0.5)
        turn_until(service, lambda: lines(tmp_path / "told"), "it is being told")
        assert service.status("s").is_over
        assert not service.is_done("s")
        assert handle.status().state == "running"  # whoever waits, waits for this, too
    (tmp_path / "go").touch()
    with fleet.service() as service:
        turn_until(service, lambda: service.is_done("s"), "it was told")
    assert lines(tmp_path / "told") == ["begun", "begun"]
    assert handle.status().state == "finished"


def test_a_command_that_fails_or_is_not_allowed_ends_the_study_all_the_same(fleet, settings):
    handle = fleet.submit(trials=1, on_end="echo broken; exit 3")
    with fleet.service() as service:
        drive_to_its_end(fleet, service)
    status = handle.status()
    assert (status.state, status.end_problem) == ("finished", "it ended with code 3: broken")
    fleet.submit(trials=2, on_end="echo other")
    fleet.settings = settings
    with fleet.service() as service:
        drive_to_its_end(fleet, service)
    assert "FLEET_ON_END" in StudyHandle("s", settings).status().end_problem
    assert Studies(fleet.client).facts.get("s", "over") is not None
