"""A terminal that a command runs on, and that can be closed."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self


def _take_terminal() -> None:
    """Make standard input the terminal of this session, whose hang-up is told to it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # the tests themselves may run under `nohup`
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Terminal:
    """A pseudo-terminal with one command in the foreground; what it shows is kept.

    Args:
        command: The program and its arguments.
        environment: All of the command's environment.
        folder: Where the command runs.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], folder: Path) -> None:
        self._screen = b""
        self._closing = threading.Event()
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def screen(self) -> str:
        """All that was shown so far."""
        return self._screen.decode(errors="replace")

    def close(self) -> None:
        """Close it: the kernel hangs up on the command."""
        self._closing.set()
        self._reader.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def _read(self) -> None:
        while not self._closing.is_set():
            readable, _, _ = select.select([self._master], [], [], 0.1)
            if readable:
                with suppress(OSError):  # it has ended
                    self._screen += os.read(self._master, 65536)
        os.close(self._master)
