"""A server by `ops/deploy/redis`: what a fleet needs of it, and users for each part alone."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import redis
import yaml
from waiting import wait_until

from orchestrator.local.servers import find_servers, free_port, start_process, stop_process
from workers.coordination.connection import connect
from workers.coordination.hints import Hints
from workers.coordination.rights import Role, missing_rights, rights_of
from workers.settings import Settings

DEPLOY = Path(__file__).parents[2] / "ops" / "deploy"
USERS = {
    "worker", "orchestrator", "user", "viewer", "operator", "metrics", "replica", "sentinel",
}  # fmt: skip


def make_users(folder):
    command = [sys.executable, str(DEPLOY / "redis" / "make_users.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def configured(tmp_path):
    """A server's port, and the folder of its passwords."""
    secrets, port = tmp_path / "secrets", free_port()
    users = tmp_path / "users.acl"
    users.write_text(make_users(secrets).stdout)
    command = [
        str(find_servers()[0]), str(DEPLOY / "redis" / "redis.conf"), "--dir", str(tmp_path),
        "--aclfile", str(users), "--port", str(port),
    ]  # fmt: skip
    with (tmp_path / "server.log").open("wb") as sink:
        process = start_process(command, os.environ, subprocess.DEVNULL, sink)
    yield port, secrets
    stop_process(process, 15, 60.0)


def password(secrets, user):
    return (secrets / f"redis-{user}").read_text().strip()


def client_of(configured, user):
    port, secrets = configured
    made = redis.Redis(
        port=port, username=user, password=password(secrets, user), decode_responses=True
    )

    def answers():
        try:
            return made.ping()
        except redis.ConnectionError:
            return False

    wait_until(answers, "the server answers")
    return made


def test_a_fleet_takes_the_server_and_each_role_has_its_rights_and_no_others(configured):
    port, secrets = configured
    with client_of(configured, "operator") as operator:
        assert set(operator.acl_users()) == {*USERS, "default"}
        found = operator.config_get("*")
        expected = {
            "maxmemory-policy": "noeviction",
            "appendonly": "yes",
            "maxmemory": "2147483648",
        }
        assert expected.items() <= found.items()
        assert "off" in operator.acl_getuser("default")["flags"]
    for role in Role:
        url = f"redis://{role.value}:{password(secrets, role.value)}@127.0.0.1:{port}/0"
        with connect(Settings(redis_url=url), role) as client:
            assert not missing_rights(client, role)
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.config_get("maxmemory")
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.get("another's key")
    with client_of(configured, "metrics") as metrics:
        assert metrics.info("memory")["maxmemory_policy"] == "noeviction"
        with pytest.raises(redis.exceptions.NoPermissionError):
            metrics.get("fleet:epoch")
    with redis.Redis(port=port) as nobody, pytest.raises(redis.AuthenticationError):
        nobody.ping()


@contextmanager
def watched(folder):
    """Two servers and three sentinels by the files, as the README has them: URL and sentinels."""
    secrets = folder / "secrets"
    users = make_users(secrets).stdout
    ports = [free_port() for _ in range(5)]
    first, second, *sentinels = ports
    both = [
        "masteruser replica", f"masterauth {password(secrets, 'replica')}",
        "min-replicas-to-write 1", "min-replicas-max-lag 10", "repl-diskless-sync-delay 0",
    ]  # fmt: skip
    lines = {first: both, second: [*both, f"replicaof 127.0.0.1 {first}"]}
    told = (DEPLOY / "redis" / "sentinel.conf").read_text().replace("OWN_PASSWORD", "its-own")
    told = told.replace("SENTINEL_PASSWORD", password(secrets, "sentinel"))
    told = told.replace("monitor fleet 127.0.0.1 6379", f"monitor fleet 127.0.0.1 {first}")
    with ExitStack() as stack:
        for port in ports:
            own = folder / str(port)
            own.mkdir()
            (own / "users.acl").write_text(users)
            at = [f"port {port}", f"dir {own}"]
            if port in lines:
                text = (DEPLOY / "redis" / "redis.conf").read_text()
                at += [f"aclfile {own}/users.acl", *lines[port]]
            else:
                text = told
            (own / "own.conf").write_text("\n".join([text, *at]))
            command = [str(find_servers()[0]), str(own / "own.conf")]
            with (own / "server.log").open("wb") as sink:
                is_one = [] if port in lines else ["--sentinel"]
                process = start_process([*command, *is_one], os.environ, subprocess.DEVNULL, sink)
            stack.callback(stop_process, process, 9, 60.0)
        places = ",".join(f"127.0.0.1:{port}" for port in sentinels)
        worker = f"worker:{password(secrets, 'worker')}"
        yield f"sentinel://{worker}@{places}/0?service=fleet&sentinel_password=its-own", sentinels


def sentinel_at(port):
    return redis.Redis(port=port, password="its-own", decode_responses=True)


def test_a_fleet_follows_servers_and_sentinels_by_the_files(tmp_path):
    def is_whole(port):
        try:
            with sentinel_at(port) as sentinel:
                sentinel.execute_command("SENTINEL DEBUG", "info-period", 500)
                state = sentinel.sentinel_masters()["fleet"]
                return (state["num-slaves"], state["num-other-sentinels"]) == (1, 2)
        except (redis.RedisError, KeyError):
            return False

    def reaches_another():
        with suppress(redis.RedisError):
            return client.set("fleet:epoch", "x") and client.info("server")["run_id"] != before
        return False

    with watched(tmp_path) as (url, sentinels):
        for port in sentinels:
            wait_until(functools.partial(is_whole, port), "it knows the replica and the others")
        client = connect(Settings(redis_url=url), Role.WORKER)
        before = client.info("server")["run_id"]
        wait_until(lambda: client.info("replication")["min_slaves_good_slaves"], "it is followed")
        with sentinel_at(sentinels[0]) as sentinel:
            sentinel.execute_command("SENTINEL FAILOVER fleet")
        wait_until(reaches_another, "the replica takes over, and the first one follows it")
        hints = Hints(url)
        hints.send("s", 0, "x", "default")
        assert hints.waiting(client, "default") == 1, "the worker may, by kombu, too"
        hints.close()
        client.close()


def test_the_health_check_of_the_compose_file_asks_as_the_user_metrics(configured, tmp_path):
    tool = next(filter(None, map(shutil.which, ("valkey-cli", "redis-cli"))), None)
    if tool is None:
        pytest.skip("no redis-cli on the PATH")
    port, secrets = configured
    client_of(configured, "metrics").close()
    compose = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())
    check = compose["services"]["redis"]["healthcheck"]["test"][1].replace("$$", "$")
    check = check.replace("/run/secrets", str(secrets)).replace("valkey-cli", f"{tool} -p {port}")
    subprocess.run(["sh", "-c", check], check=True)
    (secrets / "redis-metrics").write_text("wrong\n")
    assert subprocess.run(["sh", "-c", check], check=False).returncode != 0


def test_passwords_that_are_there_stay_and_one_that_is_empty_is_named(tmp_path):
    first = make_users(tmp_path).stdout
    assert make_users(tmp_path).stdout == first
    assert first.count("\n") == len(USERS) + 1
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    assert rights_of(Role.WORKER).rules in first
    (tmp_path / "redis-worker").write_text("\n")
    finished = make_users(tmp_path)
    assert finished.returncode == 1
    assert f"{tmp_path}/redis-worker: it holds no password" in finished.stderr
