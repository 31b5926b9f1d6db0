"""Servers of each kind, with both clients: TLS, sockets, users, versions, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
import redis
from waiting import wait_until

from orchestrator.local.servers import find_servers, free_port, start_process, stop_process
from workers.coordination import keys
from workers.coordination.address import parse_address, redact
from workers.coordination.connection import check_server, connect
from workers.coordination.hints import Hints
from workers.coordination.rights import Role
from workers.protocol.errors import InvalidInputError, RedisUnavailableError
from workers.settings import Settings


@contextmanager
def serving(folder: Path, *lines: str):
    """A server of its own configuration; skipped where this machine's cannot have it."""
    for server in find_servers():
        process = serve(server, folder, *lines)
        if process is not None:
            break
    else:
        pytest.skip(f"{server} is built without TLS: apt install redis-server")
    try:
        yield
    finally:
        stop_process(process, 15, 60.0)


def serve(server: Path, folder: Path, *lines: str) -> subprocess.Popen[bytes] | None:
    """Start a server; None where it is built without what its configuration asks for."""
    log = folder / "server.log"
    with log.open("wb") as sink:
        process = start_process(
            [str(server), "-"], env={"LANG": "C"}, stdin=subprocess.PIPE, output=sink
        )
    process.stdin.write("\n".join([f"dir {folder}", 'save ""', *lines]).encode() + b"\n")
    process.stdin.close()
    wait_until(
        lambda: process.poll() is not None or "eady to accept" in log.read_text(),
        "it starts",
    )
    if process.poll() is not None and "TLS" in log.read_text():
        return None
    assert process.poll() is None, log.read_text()
    return process


def use(url: str) -> None:
    """Speak to a server by both clients."""
    client = connect(Settings(redis_url=url), Role.USER)
    hints = Hints(url)
    try:
        client.delete(f"{keys.CELERY_PREFIX}default")
        hints.send("s", 0, "epoch", "default")
        assert hints.waiting(client, "default") == 1, "both speak to one server and database"
    finally:
        hints.close()
        client.close()


def certificates(folder: Path) -> Path:
    """A certificate authority, and a certificate for localhost that it signed."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make certificates with")

    def run(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "rsa:2048", "-nodes")
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    run(*new, "-x509", "-days", "2", "-subj", "/CN=our-ca", "-keyout", "ca.key", "-out", "ca.crt")
    run(*new, "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "server.csr")
    signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2")
    run("x509", "-req", "-in", "server.csr", *signed, "-extfile", "names", "-out", "server.crt")
    return folder


def refused_by_both(url: str) -> None:
    with pytest.raises(RedisUnavailableError, match="(?i)certificate|ssl|closed|reset"):
        connect(Settings(redis_url=url), Role.USER)
    hints = Hints(url)
    hints._app.conf.task_publish_retry = False
    with pytest.raises(redis.ConnectionError):
        hints.send("s", 0, "epoch", "default")
    hints.close()


def test_tls_is_verified_by_both_clients_unless_the_url_says_not_to(tmp_path):
    made, port = certificates(tmp_path), free_port()
    files = [f"tls-cert-file {made}/server.crt", f"tls-key-file {made}/server.key"]
    lines = ["port 0", f"tls-port {port}", *files, f"tls-ca-cert-file {made}/ca.crt"]
    ours, mine = f"ssl_ca_certs={made}/ca.crt", f"ssl_certfile={made}/server.crt"
    key = f"ssl_keyfile={made}/server.key"
    with serving(tmp_path, *lines, "tls-auth-clients no", "requirepass s3:c@r/et"):
        user = "rediss://:s3%3Ac%40r%2Fet@"
        refused_by_both(f"{user}localhost:{port}/0")
        refused_by_both(f"{user}127.0.0.1:{port}/0?{ours}")  # not the name in the certificate
        use(f"{user}localhost:{port}/1?{ours}")
        # another database: kombu's pool of connections knows them by all but their certificates
        use(f"{user}127.0.0.1:{port}/3?{ours}&ssl_check_hostname=false")
        use(f"{user}localhost:{port}/4?ssl_cert_reqs=none")
    with serving(tmp_path, *lines, "tls-auth-clients yes"):
        refused_by_both(f"rediss://localhost:{port}/5?{ours}")
        use(f"rediss://localhost:{port}/6?{ours}&{mine}&{key}")


@pytest.mark.parametrize("scheme", ["unix", "redis+socket"])
def test_a_socket_is_reached_by_both_clients(tmp_path, scheme):
    with serving(tmp_path, "port 0", f"unixsocket {tmp_path}/r.sock", "requirepass a@b:c"):
        use(f"{scheme}://:a%40b%3Ac@{tmp_path}/r.sock?db=2")


def test_a_password_in_the_query_is_taken_by_both_clients(tmp_path):
    port = free_port()
    with serving(tmp_path, f"port {port}", "requirepass sesame"):
        use(f"redis://127.0.0.1:{port}/0?password=sesame")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sentinel://h:26379/0", "it names no service: ?service=NAME"),
        ("redis+sentinel://:pw-secret@h/0", "it names no service"),
        ("sentinel://h1:1,h2:port/0?service=s", "is no Redis URL"),
        ("sentinel://h?service=s&ssl_cert_reqs=none", "for rediss:// and rediss+sentinel:// alone"),
        ("redis://h/0?service=s", "service is for sentinel:// alone"),
        ("redis+cluster://h", "Redis Cluster is not supported"),
        ("redis://h1:1,h2:2/0", "it names several servers"),
        ("http://h/0", "it begins with 'http'"),
        ("localhost:6379", "is no Redis URL"),
        ("redis://h:port/0", "is no Redis URL"),
        ("redis://h/zero", "its database is 'zero'"),
        ("unix://", "it names no socket"),
        ("redis://h?ssl_cert_reqs=none", "ssl_cert_reqs is for rediss:// and"),
        ("rediss://h?ssl_cert_reqs=maybe", "is none of required, optional, none"),
        ("rediss://h?pasword=pw-secret", "pasword is no option"),
        ("rediss://h?ssl_ca_certs=/no/such.crt", "/no/such.crt"),
    ],
)
def test_what_is_no_server_for_the_fleet_is_refused_before_anything_starts(url, message):
    with pytest.raises(InvalidInputError) as error:
        connect(Settings(redis_url=url), Role.USER)
    assert message in str(error.value)
    assert "pw-secret" not in str(error.value)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"redis_version": "6.0.16"}, "is Redis 6.0.16; the fleet needs Redis 6.2"),
        ({"redis_version": "7.2.4", "valkey_version": "7.0.1"}, "is Valkey 7.0.1"),
        ({"redis_version": "7.2.4", "redis_mode": "cluster"}, "member of a Redis Cluster"),
    ],
)
def test_servers_that_are_too_old_and_clusters_are_refused_by_name(info, message):
    with pytest.raises(InvalidInputError, match=message):
        check_server(info, parse_address("redis://h"))
    check_server({"redis_version": "7.2.4", "valkey_version": "8.1.8"}, parse_address("redis://h"))


def test_a_real_member_of_a_cluster_is_refused(tmp_path):
    port = free_port()
    with (
        serving(tmp_path, f"port {port}", "cluster-enabled yes", f"cluster-port {free_port()}"),
        pytest.raises(InvalidInputError, match="member of a Redis Cluster"),
    ):
        connect(Settings(redis_url=f"redis://127.0.0.1:{port}"), Role.USER)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:pw-secret@h:1/0",
        "redis://pw-secret@h:1/0",
        "redis://user:pw-secret@h:1/0",
        "redis://h:1/0?password=pw-secret",
        "unix://:pw-secret@/a/b.sock",
        "redis://user:pw-secret@x@h:1",
        "not a url pw-secret@h",
        "rediss://h?db=0&password=pw-secret",
        "sentinel://:pw-secret@h1:1,h2/0?service=s&sentinel_password=pw-secret",
        "sentinel://h1:1,h2/0?sentinel_password=pw-secret",
    ],
)
def test_no_part_of_a_url_shows_its_password(url):
    assert "pw-secret" not in redact(url)
    shown = [redact(url)]
    try:
        address = parse_address(url)
        shown += [str(address), repr(address)]
    except InvalidInputError as error:
        shown.append(str(error))
    assert "pw-secret" not in "".join(shown)


def test_a_worker_whose_server_is_refused_says_so_in_one_line_and_ends(tmp_path):
    finished = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "workers", "worker"],
        env={
            **os.environ,
            "FLEET_REDIS_URL": "redis+cluster://:pw-secret@h",
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert finished.returncode == 2
    assert finished.stderr.startswith("worker: FLEET_REDIS_URL = 'redis+cluster://***@h': Redis C")
    assert "pw-secret" not in finished.stdout + finished.stderr
    assert "Traceback" not in finished.stderr


#: Makes the process say its server's URL wherever a library might: in a log, a warning, an error
#: of a thread, and one that nobody catches.
CHATTY = """
import logging, os, threading
from workers.coordination.connection import connect
from workers.logs import configure_logging, guard_tracebacks
from workers.settings import Settings

configure_logging()
guard_tracebacks()
url = Settings.from_environment().redis_url
try:
    connect(Settings.from_environment(), Role.USER)
except Exception:
    logging.getLogger("kombu").exception("cannot reach %s, %r", url, {"url": url})

def fail():
    raise OSError(url)

thread = threading.Thread(target=fail)
thread.start()
thread.join()
fail()
"""


@pytest.mark.parametrize("query", [False, True], ids=["before the host", "in the query"])
def test_a_server_that_refuses_a_password_makes_nobody_print_it(tmp_path, server, query):
    password = 's3:c@r/e%t "+é'
    encoded = quote(password, safe="")
    place = f"127.0.0.1:{server.port}/0"
    url = f"redis://{place}?password={encoded}" if query else f"redis://me:{encoded}@{place}"
    environment = {**os.environ, "FLEET_REDIS_URL": url, "FLEET_HOME": str(tmp_path)}
    for command, code in {
        ("-m", "celery", "-A", "workers", "worker", "--loglevel", "DEBUG"): 2,
        ("-m", "orchestrator.cli", "serve"): 2,
        ("-m", "orchestrator.cli", "studies", "--json"): 2,
        ("-c", CHATTY): 1,
    }.items():
        finished = subprocess.run(
            [sys.executable, *command],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        output = finished.stdout + finished.stderr
        assert finished.returncode == code, output
        assert "***" in output
        for spelling in (password, encoded, quote_plus(password), json.dumps(password)[1:-1]):
            assert spelling not in output
