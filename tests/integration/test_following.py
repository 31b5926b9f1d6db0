"""Whoever waits for a study or watches it outlives a Redis that is away, or forgets the study."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import redis
from hand_fleet import Fleet, turn_until
from waiting import wait_until

from orchestrator.handle import StudyHandle
from orchestrator.local.servers import EmbeddedRedis
from workers.coordination.studies import Studies
from workers.protocol.errors import InvalidInputError, RedisUnavailableError, StudyDeletedError


class Follower(threading.Thread):
    """Follows a study from another machine, which has no storage, as `wait` and `watch` do."""

    def __init__(self, settings, tmp_path):
        super().__init__()
        self.handle = StudyHandle("s", settings.model_copy(update={"home": tmp_path / "elsewhere"}))
        self.told = []
        self.error = None
        self.start()

    def run(self):
        try:
            for status in self.handle._follow():
                self.told.append(status)
        except InvalidInputError as error:
            self.error = error

    def last(self):
        return self.told[-1] if self.told else None


def test_a_redis_that_is_away_is_waited_for(settings, tmp_path):
    with EmbeddedRedis(tmp_path / "own-redis") as server:
        settings = settings.model_copy(update={"redis_url": server.url})
        client = redis.Redis.from_url(server.url, decode_responses=True)
        fleet = Fleet(client, settings, tmp_path)
        fleet.submit(trials=1)
        with fleet.service() as service:
            turn_until(service, fleet.leases.queued, "it is in flight")
            follower = Follower(settings, tmp_path)
            wait_until(follower.last, "it is followed")
            os.kill(server.pid, signal.SIGKILL)
            wait_until(lambda: "no news: " in (follower.last().stalled or ""), "it is said")
            wait_until(server.revive, "Redis is back")
            wait_until(lambda: follower.last().stalled is None, "there is news")
            turn_until(service, fleet.leases.queued, "it still is in flight")
            fleet.commit(0, 0.5)
            turn_until(service, lambda: service.status("s").is_over, "it is over")
        follower.join(60)
        client.close()
    assert follower.error is None
    assert (follower.last().is_over, follower.last().best.value) == (True, 0.5)


def test_a_study_that_redis_forgot_is_waited_for_and_not_for_ever(client, settings, tmp_path):
    fleet = Fleet(client, settings, tmp_path)
    fleet.submit(trials=1)
    follower = Follower(settings, tmp_path)
    wait_until(follower.last, "it is followed")
    client.flushall()
    wait_until(lambda: "not known" in (follower.last().stalled or ""), "it is said")
    Studies(client).submit(fleet.spec)  # at once: it is not waited for very long
    wait_until(lambda: follower.last().stalled is None, "it is there again")
    client.flushall()
    follower.join(60)
    assert isinstance(follower.error, InvalidInputError)


def test_a_study_that_is_deleted_is_waited_for_no_more(client, settings, tmp_path):
    patient = settings.model_copy(update={"time_scale": 100.0})
    fleet = Fleet(client, patient, tmp_path)
    handle = fleet.submit(trials=1)
    follower = Follower(patient, tmp_path)
    wait_until(follower.last, "it is followed")
    handle.delete()
    follower.join(60)
    assert str(follower.error) == "study 's' was deleted"
    with pytest.raises(StudyDeletedError, match="study 's' was deleted"):
        handle.status()


def test_what_never_was_there_is_refused_at_once(client, settings, tmp_path):
    with pytest.raises(InvalidInputError, match="'t' is not known"):
        StudyHandle("t", settings).wait()
    away = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    with pytest.raises(RedisUnavailableError):
        StudyHandle("s", away).wait()


def test_a_wait_that_lasts_too_long_says_what_it_waits_for(client, settings, tmp_path):
    fleet = Fleet(client, settings, tmp_path)
    handle = fleet.submit(trials=1)
    with pytest.raises(TimeoutError, match="'s' still runs after 0.1 s"):
        handle.wait(0.1)
