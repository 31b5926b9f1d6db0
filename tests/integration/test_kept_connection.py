"""Who looks again and again opens one connection, and is told what befalls it."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import threading
import warnings
from contextlib import contextmanager

import pytest
import redis
from hand_fleet import Fleet
from waiting import wait_until

from orchestrator.handle import StudyHandle
from orchestrator.local.servers import EmbeddedRedis
from workers.coordination import connection
from workers.coordination.kept_connection import KeptConnection
from workers.coordination.rights import Role, user_line
from workers.protocol.errors import RedisUnavailableError, RightsMissingError
from workers.settings import Settings


def opened(client):
    return client.info("stats")["total_connections_received"]


@contextmanager
def own_server(tmp_path, home="own"):
    with EmbeddedRedis(tmp_path / home) as server:
        client = redis.Redis.from_url(server.url, decode_responses=True)
        yield server, client
        client.close()


def test_many_looks_through_many_handles_open_one_connection(client, settings, tmp_path):
    fleet = Fleet(client, settings, tmp_path)
    fleet.submit(trials=1)
    handles = [StudyHandle("s", settings) for _ in range(20)]
    before = opened(client)
    for _ in range(3):
        assert {handle.status().state for handle in handles} == {"running"}
        assert {handle.spec().name for handle in handles} == {"s"}
    handles[0].pause()
    handles[1].resume()
    # of who looks, and of who asks, each with one more that its rights were tried with
    assert opened(client) - before == 4


def test_it_is_closed_when_nobody_has_it(client, settings):
    kept = KeptConnection.of(settings, Role.VIEWER)
    assert KeptConnection.of(settings, Role.VIEWER) is kept
    assert pickle.loads(pickle.dumps(kept)) is kept
    assert KeptConnection.of(settings, Role.USER) is not kept
    before = len(client.client_list())
    with kept.use() as looking:
        assert looking.ping()
    assert len(client.client_list()) == before + 1
    del kept, looking
    gc.collect()
    wait_until(lambda: len(client.client_list()) == before, "it is closed")


def lose_it_in_a_look(kept, server):
    with kept.use() as client:
        os.kill(server.pid, signal.SIGKILL)
        while True:
            client.ping()


def test_a_server_that_goes_away_in_the_midst_is_told_as_one_that_was_away(tmp_path):
    with own_server(tmp_path) as (server, _):
        kept = KeptConnection(Settings(redis_url=server.url), Role.VIEWER)
        with pytest.raises(RedisUnavailableError, match="does not answer"):
            lose_it_in_a_look(kept, server)
        with pytest.raises(RedisUnavailableError, match="does not answer"), kept.use():
            pytest.fail("it is away")
        wait_until(server.revive, "it is back")
        with kept.use() as client:
            os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(RedisUnavailableError, match="does not answer"), kept.use():
            pytest.fail("it is away, and that is seen before anything is asked")
        wait_until(server.revive, "it is back")
        with kept.use() as client:
            assert client.ping()


def test_an_embedded_server_is_followed_to_where_it_began_anew(tmp_path):
    kept = KeptConnection(Settings(home=tmp_path / "own"), Role.VIEWER)
    for mark in ("first", "second"):
        with own_server(tmp_path) as (_, client), kept.use() as looking:
            client.set("mark", mark)
            assert looking.get("mark") == mark


def test_rights_that_are_taken_away_are_named_and_seen_when_they_are_back(tmp_path):
    with own_server(tmp_path) as (_, admin):
        port = admin.connection_pool.connection_kwargs["port"]
        admin.execute_command(*user_line(Role.VIEWER, "looker").split())
        url = f"redis://looker:PASSWORD@127.0.0.1:{port}/0"
        kept = KeptConnection(Settings(redis_url=url), Role.VIEWER)
        with kept.use() as client:
            client.hget("fleet:{s}:study", "spec")
        admin.execute_command("ACL SETUSER", "looker", "-hget")
        with pytest.raises(RightsMissingError, match="looker.*hget"), kept.use() as client:
            client.hget("fleet:{s}:study", "spec")
        with pytest.raises(RightsMissingError, match="looker.*hget"), kept.use():
            pytest.fail("they are lacking")
        admin.execute_command("ACL SETUSER", "looker", "+hget")
        with kept.use() as client:
            client.hget("fleet:{s}:study", "spec")


@contextmanager
def mute_server():
    """A server that takes connections and never answers: its URL, and all that it took."""
    taken = []

    def take():
        while True:
            try:
                taken.append(listening.accept()[0])
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        taking = threading.Thread(target=take)
        taking.start()
        try:
            yield f"redis://127.0.0.1:{listening.getsockname()[1]}/0", taken
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            taking.join()
            for each in taken:
                each.close()


def look_in_vain(kept):
    with pytest.raises(RedisUnavailableError, match="does not answer"), kept.use():
        pytest.fail("it does not answer")


def test_of_many_who_look_at_a_server_that_does_not_answer_none_waits_for_the_others(monkeypatch):
    monkeypatch.setattr(connection, "_SOCKET_TIMEOUT_SECONDS", 0.1)
    with mute_server() as (url, taken):
        kept = KeptConnection(Settings(redis_url=url), Role.VIEWER)
        look_in_vain(kept)
        by_one = len(taken)
        looking = [threading.Thread(target=look_in_vain, args=[kept]) for _ in range(8)]
        for each in looking:
            each.start()
        for each in looking:
            each.join()
        assert len(taken) <= 3 * by_one, "not each in turn"


def test_a_fork_in_the_midst_of_a_look_opens_its_own(monkeypatch):
    with mute_server() as (url, taken):
        kept = KeptConnection.of(Settings(redis_url=url), Role.VIEWER)
        looking = threading.Thread(target=look_in_vain, args=[kept])
        looking.start()
        wait_until(lambda: taken, "it waits for an answer")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # to fork beside threads
            pid = os.fork()
        if not pid:
            try:
                signal.alarm(30)
                connection._SOCKET_TIMEOUT_SECONDS = 0.1
                look_in_vain(kept)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == 0, "it waits for a thread that it does not have"
    looking.join()


def test_a_server_that_only_reads_any_more_is_looked_for_anew(tmp_path):
    with own_server(tmp_path) as (server, admin):
        kept = KeptConnection(Settings(redis_url=server.url), Role.VIEWER)
        with kept.use() as client:
            admin.execute_command("REPLICAOF", "127.0.0.1", "1")
            with pytest.raises(redis.exceptions.ReadOnlyError), kept.use():
                client.set("mark", "x")
        with kept.use() as other:
            assert other is not client


def test_where_nobody_named_a_server_and_none_is_there_that_is_said_at_once(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setattr(connection, "DEFAULT_URL", f"redis://127.0.0.1:{port}/0")
    monkeypatch.setattr("redis.retry.sleep", lambda _: pytest.fail("it is tried again"))
    with pytest.raises(RedisUnavailableError, match="does not answer"):
        connection.connect(Settings(home=tmp_path), Role.VIEWER)
