"""Both clients of a server that sentinels name: found, and followed when another takes over."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from runbook import Runbook
from sentinel_servers import SentinelServers
from waiting import wait_until

from orchestrator.doctor.examination import Examination
from orchestrator.doctor.findings import Level
from orchestrator.local.servers import find_servers
from workers.coordination.address import parse_address
from workers.coordination.connection import connect, is_general, name_missing
from workers.coordination.hints import Hints
from workers.coordination.rights import Role
from workers.coordination.scripts import script
from workers.coordination.sentinels import DemotedError, Sentinels, probing
from workers.coordination.studies import Studies, ensure_epoch
from workers.protocol.errors import InvalidInputError, RedisUnavailableError
from workers.protocol.spec import StudySpec
from workers.settings import Settings


@pytest.fixture
def servers(tmp_path):
    made = SentinelServers(tmp_path)
    try:
        yield made.start()
    finally:
        made.stop()


def certificates(folder: Path) -> Path:
    """A certificate of this host's address, and who signed it."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make certificates with")

    def run(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "rsa:2048", "-nodes")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    run(*new, "-x509", "-days", "2", "-subj", "/CN=our-ca", "-keyout", "ca.key", "-out", "ca.crt")
    run(*new, "-subj", "/CN=server", "-keyout", "server.key", "-out", "server.csr")
    signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
    run("x509", "-req", "-in", "server.csr", *signed, "-extfile", "names", "-out", "server.crt")
    return folder


def has_tls(server: Path) -> bool:
    """Whether a server is built with it, and so misses the certificate."""
    finished = subprocess.run(
        [server, "--port", "0", "--tls-port", "1", "--tls-cert-file", "/no/such"],
        env={"LANG": "C"}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return "Failed to configure TLS" in finished.stdout


def run_id(client):
    return client.info("server")["run_id"]


def patiently(call):
    """What a call comes to, when nothing hinders it any more."""
    found = []

    def is_done():
        with suppress(redis.RedisError):
            found.append(call())
        return found

    wait_until(is_done, "it is done")
    return found[0]


def test_a_replica_that_takes_over_is_found_by_both_clients_and_has_the_scripts(servers):
    settings = Settings(redis_url=servers.url)
    client, hints = connect(settings, Role.USER), Hints(servers.url)
    primary, before, epoch = servers.primary(), run_id(client), ensure_epoch(client)
    Studies(client).submit(StudySpec(name="s", objective="train:objective"))
    leases = Studies(client).leases("s", epoch)
    leases.renew(0, token=1, lease_seconds=1.0, step=0)
    renewing = client.register_script(script("renew").source).sha
    assert client.script_exists(renewing) == [True]
    hints.send("s", 0, epoch, "default")
    client.wait(1, 60_000)
    servers.signal(primary, signal.SIGKILL)
    patiently(lambda: client.set("fleet:try", "x"))
    assert run_id(client) != before
    assert ensure_epoch(client) == epoch, "it has the data"
    assert client.script_exists(renewing) == [False]
    patiently(lambda: leases.renew(0, token=1, lease_seconds=1.0, step=0))
    assert client.script_exists(renewing) == [True]
    patiently(lambda: hints.send("s", 1, epoch, "default"))
    assert hints.waiting(client, "default") == 2, "both speak to the new one"
    hints.close()
    client.close()


def test_who_waits_in_a_primary_that_is_demoted_goes_on_waiting_in_the_next(servers):
    """One that lives on, and would go on to take what is written to it."""
    settings = Settings(redis_url=servers.url)
    waiting, other = connect(settings, Role.USER), connect(settings, Role.USER)
    primary, before = servers.primary(), run_id(other)
    heard = []
    thread = threading.Thread(
        target=lambda: heard.append(patiently(lambda: waiting.blpop(["news"], timeout=9)))
    )
    thread.start()
    with servers.client(primary) as seen:
        wait_until(lambda: seen.info("clients")["blocked_clients"], "it waits")
    servers.fail_over()
    servers.await_failover(primary)
    wait_until(lambda: servers.role(primary) == "slave", "the first one is demoted")
    with servers.client(next(port for port in servers.ports if port != primary)) as seen:
        wait_until(lambda: seen.info("clients")["blocked_clients"] or heard, "it waits in the next")
    patiently(lambda: other.rpush("news", "told"))
    assert run_id(other) != before
    thread.join(60)
    assert heard == [("news", "told")]
    waiting.close()
    other.close()


def replaced(servers):
    """Another server is the primary, and nobody has cut the connections to the first: its port."""
    primary = servers.primary()
    other = next(port for port in servers.ports if port != primary)
    with servers.client(other) as replica:
        replica.replicaof("NO", "ONE")
    servers.watch(other)
    return primary, other


def follow(servers, primary, other):
    with servers.client(primary) as old:
        old.replicaof("127.0.0.1", other)


def lack_replicas(servers, primary, other):
    with servers.client(primary) as old:
        wait_until(lambda: not old.info("replication")["connected_slaves"], "it lost its replica")
        old.config_set("min-replicas-to-write", 1)


@pytest.mark.parametrize("becomes", [follow, lack_replicas])
def test_a_server_that_takes_no_writes_any_more_is_left_at_the_first_one(servers, becomes):
    """By whatever way one is made: none is refused, and none is lost."""
    clients = [connect(Settings(redis_url=servers.url), Role.USER) for _ in range(4)]
    before = [run_id(client) for client in clients]
    becomes(servers, *replaced(servers))
    plain, script, transaction, pipeline = clients
    assert plain.set("plain", "x")
    assert script.eval("return redis.call('set', KEYS[1], 'x')", 1, "script") == "OK"
    assert transaction.pipeline().set("transaction", "x").execute() == [True]
    assert pipeline.pipeline(transaction=False).set("pipeline", "x").execute() == [True]
    assert plain.mget("plain", "script", "transaction", "pipeline") == ["x"] * 4
    assert not set(before) & {run_id(client) for client in clients}
    for client in clients:
        client.close()


def test_what_asks_for_rights_stays_with_a_server_that_takes_no_writes(servers):
    """That it lacks replicas says nothing of a user's rights, and keeps nobody from starting."""
    client = connect(Settings(redis_url=servers.url), Role.USER)
    before = run_id(client)
    lack_replicas(servers, *replaced(servers))
    connection = client.connection_pool.get_connection()
    with probing(connection):
        connection.send_command("SET", "key", "x")
        with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
            connection.read_response()
        connection.send_command("INFO", "server")
        assert before in str(connection.read_response()), "it is with the same server"
    connection.send_command("SET", "key", "x")
    with pytest.raises(DemotedError, match="too few replicas"):
        connection.read_response()
    connection.send_command("INFO", "server")
    assert before not in str(connection.read_response()), "it has asked the sentinels anew"
    client.connection_pool.release(connection)
    client.close()


def test_a_primary_without_its_replica_lets_members_start_and_wait(servers):
    for port in servers.ports:
        with servers.client(port) as server:
            server.config_set("min-replicas-to-write", 1)
    primary = servers.primary()
    servers.signal(next(port for port in servers.ports if port != primary), signal.SIGKILL)
    settings = Settings(redis_url=servers.url)
    with servers.client(primary) as server:
        wait_until(lambda: not server.info("replication")["connected_slaves"], "it has none")
    client = connect(settings, Role.ORCHESTRATOR)
    assert name_missing(client, Role.ORCHESTRATOR, settings) is None
    with pytest.raises(redis.RedisError, match="NOREPLICAS"):
        client.set("key", "x")
    client.close()


def test_threads_that_ask_the_sentinels_at_once_do_not_cut_one_another_off(servers):
    address = parse_address(servers.url)
    sentinels = Sentinels(address.sentinels, sentinel_kwargs=address.sentinel_options)
    primary = ("127.0.0.1", servers.primary())
    with ThreadPoolExecutor(8) as threads:
        found = [threads.submit(sentinels.discover_master, address.service) for _ in range(200)]
    assert {each.result() for each in found} == {primary}


def test_what_a_blocked_read_is_told_at_a_demotion_concerns_all_that_is_done(server, client):
    answer = "UNBLOCKED force unblock from blocking operation, instance state changed"
    assert is_general(redis.ResponseError(answer))


def test_sentinels_that_cannot_help_are_named_and_their_passwords_are_not(servers):
    def refusal(url, kind):
        with pytest.raises(kind) as error:
            connect(Settings(redis_url=url), Role.USER)
        return str(error.value)

    unknown = refusal(servers.url.replace("service=fleet", "service=flete"), InvalidInputError)
    assert f"127.0.0.1:{servers.sentinel_ports[0]} watches ['fleet']" in unknown
    stranger = servers.url.replace(servers.sentinel_password, "wrong-s3cret")
    refused = refusal(stranger, RedisUnavailableError)
    assert f"127.0.0.1:{servers.sentinel_ports[2]} does not answer" in refused
    wrong = refusal(
        servers.url.replace(f":{servers.password}@", ":no-s3cret@"), RedisUnavailableError
    )
    for port in servers.sentinel_ports[:2]:
        servers.signal(port, signal.SIGKILL)
    connect(Settings(redis_url=servers.url), Role.USER).close()
    servers.signal(servers.sentinel_ports[2], signal.SIGKILL)
    gone = refusal(servers.url, RedisUnavailableError)
    assert gone.count("does not answer") == 4, "the fleet's Redis, by any of three"
    for told in (unknown, refused, wrong, gone):
        assert "s3cret" not in told


def test_the_doctor_looks_at_the_sentinels(servers, tmp_path):
    settings = Settings(redis_url=servers.url, home=tmp_path / "home")

    def look():
        groups = {group.subject: group for group in Examination(settings).groups()}
        return {each.looked_at: each for each in groups["Sentinel"].findings}

    found = look()
    assert found.pop("min-replicas-to-write").level is Level.WARNING
    assert {each.level for each in found.values()} == {Level.OK}
    for port in servers.ports:
        with servers.client(port) as client:
            client.config_set("min-replicas-to-write", 1)
    assert look()["min-replicas-to-write"].level is Level.OK
    servers.signal(servers.sentinel_ports[0], signal.SIGKILL)
    assert look()["sentinels"].level is Level.WARNING
    servers.signal(servers.sentinel_ports[1], signal.SIGKILL)
    assert look()["majority"].level is Level.ERROR


def runbook_of(servers, folder):
    """The runbook on these servers, with an operator on each, and the sentinels' password."""
    for port in servers.ports:
        with servers.client(port) as server:
            server.acl_setuser(
                "operator", enabled=True, passwords=["+pw"], categories=["+@all"], keys=["*"]
            )
    secrets = folder / "secrets"
    secrets.mkdir()
    (secrets / "redis-operator").write_text("pw\n")
    (secrets / "sentinels").write_text(f"{servers.sentinel_password}\n")
    place = {"SENTINEL_HOST": "127.0.0.1", "SENTINEL_PORT": servers.sentinel_ports[0]}
    settings = Settings(redis_url=servers.url, home=folder / "home")
    environment = {**os.environ, **settings.to_environment()}
    return Runbook(folder, lambda: environment, SECRETS=secrets, REDIS_HOST="127.0.0.1", **place)


@pytest.mark.long
def test_the_runbook_says_what_to_do_about_a_primary_that_was_replaced(servers, tmp_path):
    def follow(**variables):
        return book.follow("A primary that was replaced", **variables)

    book, primary = runbook_of(servers, tmp_path), servers.primary()
    client = connect(Settings(redis_url=servers.url), Role.USER)
    for port in servers.ports:
        with servers.client(port) as server:
            server.config_set("min-replicas-to-write", 1)
    servers.signal(primary, signal.SIGKILL)
    servers.await_failover(primary)
    other = servers.primary()
    wait_until(lambda: servers.knows_replica(primary), "what is gone is known for a replica")
    told = follow()
    assert str(other) in told.split()
    assert f"127.0.0.1:{primary}" in told, "it is a replica that is not there"
    with pytest.raises(redis.RedisError, match="NOREPLICAS"):
        client.set("fleet:try", "x")
    follow(REDIS_PORT=other)
    patiently(lambda: client.set("fleet:try", "x"))
    servers.start_server(primary)
    wait_until(lambda: servers.is_followed(other), "the old one follows")
    told = follow(REDIS_PORT=other)
    assert "role:master" in told
    assert "state=online" in told
    assert "Sentinel" in told
    with servers.client(other) as server:
        assert server.config_get("min-replicas-to-write")["min-replicas-to-write"] == "1"
    follow()
    servers.await_failover(other)
    assert servers.primary() == primary
    assert not book.left["A primary that was replaced"]
    client.close()


def test_both_clients_are_told_the_same_of_sentinels():
    url = "rediss+sentinel://me:p%3Bw@a,[::1]:5/3?service=s&sentinel_username=u&sentinel_password=q"
    address = parse_address(url)
    assert address.sentinels == [("a", 26379), ("::1", 5)]
    assert (address.db, address.username, address.password) == (3, "me", "p;w")
    settings = address.broker_settings({"visibility_timeout": 7})
    places = "a:26379", "[::1]:5"
    assert settings["broker_url"] == ";".join(f"sentinel://me:p%3Bw@{each}/3" for each in places)
    options = settings["broker_transport_options"]
    assert options["visibility_timeout"] == 7
    assert options["socket_timeout"] == 10, "a worker that acknowledges does not wait for ever"
    assert options["master_name"] == "s"
    told = options["sentinel_kwargs"]
    assert (told["username"], told["password"], told["ssl"]) == ("u", "q", True)
    assert settings["broker_use_ssl"] == address.tls
    assert str(address) == "rediss+sentinel://***@a:26379,[::1]:5/3?service=s"
    assert "'q'" not in repr(address)


def test_over_tls_sentinels_and_servers_are_verified_by_both_clients(tmp_path):
    binary = next(filter(has_tls, find_servers()), None)
    if binary is None:
        pytest.skip("no server here is built with TLS: apt install redis-server")
    made = SentinelServers(tmp_path, certificates(tmp_path), binary)
    try:
        made.start()
        client, hints = connect(Settings(redis_url=made.url), Role.USER), Hints(made.url)
        primary, before = made.primary(), run_id(client)
        hints.send("s", 0, "epoch", "default")
        client.wait(1, 60_000)
        with pytest.raises(RedisUnavailableError, match="(?i)certificate"):
            connect(Settings(redis_url=made.url.partition("&ssl_ca_certs")[0]), Role.USER)
        made.signal(primary, signal.SIGKILL)
        patiently(lambda: client.set("fleet:try", "x"))
        assert run_id(client) != before
        patiently(lambda: hints.send("s", 1, "epoch", "default"))
        assert hints.waiting(client, "default") == 2
        hints.close()
        client.close()
    finally:
        made.stop()
