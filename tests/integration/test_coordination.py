from __future__ import annotations

import json
import os
import stat

import pytest
import redis
from waiting import wait_until

from orchestrator.local.servers import EmbeddedRedis
from workers.coordination import keys
from workers.coordination import studies as studies_module
from workers.coordination.clock import server_time_ms
from workers.coordination.connection import connect, endpoint_file, resolve_url
from workers.coordination.event_stream import EventStream
from workers.coordination.hints import Hints
from workers.coordination.identity import ProcessIdentity
from workers.coordination.inbox import Inbox
from workers.coordination.rights import Role
from workers.coordination.studies import Studies, ensure_epoch
from workers.processes.cleanup_lease import CleanupLease
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.errors import InvalidInputError, RedisUnavailableError
from workers.protocol.messages import Result, RunTrial
from workers.protocol.spec import StudySpec
from workers.protocol.states import ProcessKind, TrialState
from workers.settings import Settings


def test_what_was_not_acknowledged_comes_back_to_whoever_joins(client):
    leases = Studies(client).leases("s")
    leases.enqueue(0, {})
    grant = leases.claim(0, "o", 45)
    leases.report(0, grant.token, 1, 0.5)
    leases.commit(0, grant.token, TrialState.COMPLETE, Result(values=[1.0]))
    first = Inbox(client, "first")
    assert first.join("s") == []
    entries = [entry for _, entry in first.read(["s"], 10)]
    assert [entry.kind for entry in entries] == ["report", "terminal"]
    first.acknowledge("s", [entries[0].id])
    second = Inbox(client, "second")
    assert second.join("s") == [entries[1]]
    second.acknowledge("s", [entries[1].id])
    assert Inbox(client, "third").join("s") == []
    assert client.xlen(keys.inbox("s")) == 0
    consumers = client.xinfo_consumers(keys.inbox("s"), "orchestrator")
    assert consumers == [], "those before are gone"


def test_an_empty_inbox_is_waited_for_and_then_left(client):
    inbox = Inbox(client, "c")
    inbox.join("s")
    assert inbox.read(["s"], 10) == []


def test_a_record_lives_as_long_as_somebody_beats_for_it(client, settings):
    times = settings.times.scaled(100)
    registry = ProcessRegistry(client, times)
    record = ProcessRecord(registry, ProcessKind.MAIN, fields={"slots": 2, "queues": ["default"]})
    record.register()
    (entry,) = registry.entries()
    assert entry.identity == ProcessIdentity.current()
    assert (entry.kind, entry.slots, entry.queues) == (ProcessKind.MAIN, 2, ["default"])
    assert 0 < entry.lease_left_seconds <= times.lease
    assert ProcessRegistry(client, settings.times.scaled(0.01)).beat(record.identity)
    wait_until(lambda: not list(registry.entries()), "the record runs out")
    assert registry.find(record.identity).slots == 2, "and is kept for the cleaner"
    record.beat()
    (entry,) = registry.entries()
    assert entry.slots == 2
    record.gone()
    assert list(registry.entries()) == []


def test_a_record_names_scratch_directories_for_as_long_as_they_are_there(
    client, settings, tmp_path
):
    registry = ProcessRegistry(client, settings.times)
    record = ProcessRecord(registry)
    record.register()
    record.add_scratch(tmp_path / "a")
    assert registry.find(record.identity).scratch == [tmp_path / "a"]
    record.drop_scratch(tmp_path / "a")
    assert registry.find(record.identity).scratch == []


def test_without_a_registry_a_record_is_written_nowhere(client):
    record = ProcessRecord()
    record.register()
    record.update(study="s")
    record.beat()
    record.gone()
    assert client.keys("fleet:process*") == []


def test_a_hint_lies_in_its_queue_until_a_worker_fetches_it(client, server):
    hints = Hints(server.url)
    hints.send("s", 3, "e", "gold")
    assert hints.waiting(client, "gold") == 1
    message = json.loads(client.lindex(f"{keys.CELERY_PREFIX}gold", 0))
    assert message["headers"]["task"] == "workers.tasks.run_trial"
    hints.close()
    assert RunTrial(study="s", number=3, epoch="e").version == 1


def test_a_study_is_written_extended_and_read(client):
    studies = Studies(client)
    spec = StudySpec(name="s", trials=5)
    studies.submit(spec)
    assert studies.exists("s")
    assert studies.spec("s") == spec
    studies.submit(StudySpec(name="s", trials=9))
    assert studies.spec("s").trials == 9
    assert studies.names() == ["s"]
    studies.facts.publish("s", {"best_value": 0.5, "status": {"a": None}})
    shown = studies.facts.all("s")
    assert shown.pop("shown_ms") == pytest.approx(server_time_ms(client), abs=60_000)
    assert shown == {"best_value": 0.5, "status": {"a": None}}
    assert studies.facts.get("s", "nothing") is None
    client.hincrby(keys.study("s"), "fact:shown_ms", -100_000)
    assert studies.facts.shown_seconds("s") == pytest.approx(100, abs=60)


def test_a_study_whose_submitter_is_killed_when_it_is_written_has_been_told(client, monkeypatch):
    call = studies_module.call

    def killed_after_it(*arguments):
        call(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(studies_module, "call", killed_after_it)
        with pytest.raises(KeyboardInterrupt):
            Studies(client).submit(StudySpec(name="s"))
    ((told,),) = EventStream(client, "s").after("0-0")
    assert told.text == '{"kind":"submitted"}'
    client.delete(keys.events("s"))
    client.set(keys.events("s"), "no stream")
    Studies(client).submit(StudySpec(name="s", trials=9))
    assert Studies(client).spec("s").trials == 9, "that holds nothing up"


def test_what_was_a_narrower_study_is_an_event_unless_redis_had_lost_it(client):
    def begin(former):
        Studies(client).begin("s", "generation", "place", former)
        found = EventStream(client, "s").after("0-0")
        return [each.text for batch in found for each in batch if "widened" in each.text]

    Studies(client).submit(StudySpec(name="s"))
    assert begin("s@1") == [], "it may have been told in what Redis lost"
    assert begin("s@1") == []
    assert begin("s@2") == begin("s@2") == ['{"kind":"widened","detail":"as it was: s@2"}']


def test_an_unknown_study_is_an_error_that_lists_the_known_ones(client):
    Studies(client).submit(StudySpec(name="known"))
    with pytest.raises(InvalidInputError, match="'unknown'.*did you mean 'known'"):
        Studies(client).spec("unknown")


def test_the_epoch_is_drawn_once(client):
    assert ensure_epoch(client) == ensure_epoch(client)


def test_the_url_is_the_environments_then_the_embedded_servers_then_the_usual(tmp_path):
    home = tmp_path / "home"
    assert resolve_url(Settings(home=home)) == "redis://127.0.0.1:6379/0"
    endpoint_file(home).parent.mkdir(parents=True)
    endpoint_file(home).write_text(json.dumps({"url": "redis://x:1/0", "pid": 1}))
    assert resolve_url(Settings(home=home)) == "redis://x:1/0"
    assert resolve_url(Settings(home=home, redis_url="redis://y:2/0")) == "redis://y:2/0"


def test_a_server_that_does_not_answer_is_named():
    with pytest.raises(RedisUnavailableError, match="redis://127.0.0.1:1/0 does not answer"):
        connect(Settings(redis_url="redis://127.0.0.1:1/0"), Role.USER)


def test_a_server_that_evicts_keys_is_refused(client, settings):
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(InvalidInputError, match="allkeys-lru.*set it to noeviction"):
            connect(settings, Role.USER)
    finally:
        client.config_set("maxmemory-policy", "noeviction")


def test_the_embedded_server_keeps_its_data_and_its_password_to_itself(tmp_path):
    with EmbeddedRedis(tmp_path) as server:
        path = endpoint_file(tmp_path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        first = redis.Redis.from_url(server.url)
        first.set("key", "value")
        first.close()
        stranger = redis.Redis(port=server.port)
        with pytest.raises(redis.AuthenticationError):
            stranger.get("key")
        stranger.close()
        pid = server.pid
    assert not path.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with EmbeddedRedis(tmp_path) as server:
        second = redis.Redis.from_url(server.url, decode_responses=True)
        assert second.get("key") == "value"
        second.close()


def test_a_record_that_redis_lost_is_written_whole_by_the_next_change(client, settings):
    registry = ProcessRegistry(client, settings.times)
    record = ProcessRecord(registry, ProcessKind.TRIAL, parent=7)
    record.register()
    client.flushall()
    record.update(study="s", trial=3, token=5)
    (entry,) = registry.entries()
    assert (entry.kind, entry.parent, entry.study, entry.trial) == (ProcessKind.TRIAL, 7, "s", 3)


def test_a_record_of_an_earlier_epoch_is_written_anew_by_the_next_beat(client, settings):
    registry = ProcessRegistry(client, settings.times)
    ensure_epoch(client)
    record = ProcessRecord(registry, ProcessKind.MAIN, fields={"slots": 2})
    record.register()
    assert registry.beat(record.identity)
    client.hset(keys.process(record.identity), "queues", '["of before"]')
    client.set(keys.EPOCH, "another")
    assert not registry.beat(record.identity)
    record.beat()
    assert registry.beat(record.identity)
    entry = registry.find(record.identity)
    assert (entry.slots, entry.queues) == (2, []), "nothing of the old record is left"


def test_one_process_cleans_a_host_and_another_when_its_lease_has_ended(client):
    ensure_epoch(client)
    host = ProcessIdentity.current()
    first, second = (CleanupLease(client, host._replace(pid=pid), 45.0) for pid in (1, 2))
    token = first.acquire()
    assert token is not None
    assert first.acquire() == token, "asking twice is asking once"
    assert first.renew(token)
    assert second.acquire() is None
    assert CleanupLease(client, host._replace(pid=1), 0.1).renew(token)
    wait_until(lambda: second.acquire() is not None, "the lease ends")
    later = second.acquire()
    assert later > token
    assert not first.renew(token)
    assert not first.done(token)
    assert second.done(later)
    assert first.acquire() > later


def test_a_cleanup_lease_of_an_earlier_epoch_is_held_by_nobody(client):
    ensure_epoch(client)
    host = ProcessIdentity.current()
    first, second = (CleanupLease(client, host._replace(pid=pid), 45.0) for pid in (1, 2))
    token = first.acquire()
    client.set(keys.EPOCH, "another")
    assert not first.renew(token)
    assert not first.done(token)
    assert second.acquire() > token


def test_a_hint_that_redis_does_not_take_is_an_error_of_redis():
    hints = Hints("redis://127.0.0.1:1/0")
    with pytest.raises(redis.ConnectionError, match="a hint was not sent"):
        hints.send("s", 0, "e", "default")
    hints.close()
