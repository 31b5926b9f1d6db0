"""A Redis that is there and refuses all, since its disk is full: told with the way out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import redis
from disks import fill, small_disk
from hand_fleet import Fleet
from waiting import wait_until

from orchestrator.doctor.examination import Examination
from orchestrator.doctor.findings import Level
from orchestrator.fleet import statuses_at_hand
from orchestrator.handle import StudyHandle
from orchestrator.local.run import _Trouble
from orchestrator.local.servers import EmbeddedRedis
from workers.coordination.connection import is_general
from workers.protocol.errors import RedisUnavailableError

WAY_OUT = r"refuses: MISCONF .*No space left on device; make room on the disk of that server"


@pytest.fixture
def place(tmp_path):
    """A home with a server and a study, and what fills the server's disk."""
    home = tmp_path / "small"
    with (
        small_disk(home / "redis", 1024) as filler,
        EmbeddedRedis(home) as server,
        redis.Redis.from_url(server.url, decode_responses=True) as client,
    ):
        yield home, client, filler


@pytest.fixture
def at_home(place, settings, monkeypatch):
    """Settings of whoever has not named a Redis, and finds that of its home."""
    home = place[0]
    monkeypatch.setenv("FLEET_HOME", str(home))
    monkeypatch.delenv("FLEET_REDIS_URL", raising=False)
    return settings.model_copy(update={"redis_url": None, "home": home})


def refuses(client):
    try:
        client.set("a", "b" * 4096)
        client.ping()
    except redis.ResponseError as error:
        return str(error).startswith("MISCONF")
    return False


def test_whoever_looks_or_acts_is_told_that_its_disk_is_full(place, at_home, tmp_path):
    _, client, filler = place
    Fleet(client, at_home, tmp_path).submit(trials=1)
    handle = StudyHandle("s", at_home)
    assert handle.status().state == "running"
    fill(filler)
    wait_until(lambda: refuses(client), "it takes no writes", every_seconds=0.2)
    fresh = StudyHandle("s", at_home.model_copy())
    for asks in (handle.status, handle.pause, fresh.status, statuses_at_hand):
        with pytest.raises(RedisUnavailableError, match=WAY_OUT):
            asks()
    groups = Examination(at_home, None, False).groups()
    found = [each for group in groups if group.subject == "Redis" for each in group.findings]
    assert [(each.level, each.fix) for each in found] == [
        (Level.ERROR, "make room on the disk of that server")
    ]
    filler.unlink()
    wait_until(lambda: not refuses(client), "it takes writes again", every_seconds=0.2)
    assert handle.status().state == "running"


def test_one_that_has_reached_its_maxmemory_is_told_with_its_way_out(client, settings, tmp_path):
    fleet = Fleet(client, settings, tmp_path)
    fleet.submit(trials=1)
    handle = StudyHandle("s", settings)
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(RedisUnavailableError, match="refuses: .*maxmemory.*; raise its maxm"):
            handle.pause()
        with pytest.raises(redis.exceptions.OutOfMemoryError) as found:
            client.set("a", "b")
        assert is_general(found.value)
    finally:
        client.config_set("maxmemory", 0)
    handle.pause()


def test_the_service_tells_of_it_once_and_goes_on_when_there_is_room(place, at_home, tmp_path):
    _, client, filler = place
    fleet = Fleet(client, at_home, tmp_path)
    fleet.submit(trials=1)
    with fleet.service() as service:
        service.turn()
        assert service.trouble is None
        fill(filler)
        wait_until(lambda: refuses(client), "it takes no writes", every_seconds=0.2)
        wait_until(lambda: service.turn() or service.trouble, "a turn fails")
        first = service.trouble
        assert "make room on the disk of that server" in first
        assert "script:" not in first
        filler.unlink()
        wait_until(lambda: service.turn() or not service.trouble, "it goes on")


def test_who_runs_a_study_is_told_of_what_lasts_once():
    told, now = [], [0.0]
    trouble = _Trouble(SimpleNamespace(say=told.append), clock=lambda: now[0])
    for now[0], reason in ((1, "gone"), (2, None), (3, "full"), (4, "full"), (9, "full")):
        trouble.look(reason)
    assert told == ["waits: full"], "a server that is back at once is nobody's business"
    trouble.look("full")
    assert told == ["waits: full"]
