"""Who a process is: host, boot, pid and start time, which together are never used again.

Invariant: a process is called dead only by whoever would see it if it lived. Of a process of
another host, boot, pid namespace or user nothing is known, and nothing of it is touched.
"""

from __future__ import annotations

import functools
import hashlib
import os
import socket
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import NamedTuple, Self

import psutil


class Life(Enum):
    """What can be said of a process from here."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"
    """It is not ours to judge, or the kernel shows it to its own user alone (`hidepid`)."""


class ProcessIdentity(NamedTuple):
    """A process, told apart from any later one with the same pid."""

    host: str
    boot_id: str
    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> Self:
        """The identity of a process of this host.

        Raises:
            ProcessLookupError: There is no such process.
        """
        return cls(hostname(), boot_id(), pid, start_ticks(pid))

    @classmethod
    def current(cls) -> Self:
        """The identity of this process."""
        return cls.of(os.getpid())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` wrote.

        Raises:
            ValueError: It did not write this.
        """
        host, boot, pid, ticks = text.rsplit(":", 3)
        if not (pid.isascii() and pid.isdecimal() and ticks.isdecimal() and int(pid) > 0):
            raise ValueError(f"{text!r} names no process")
        return cls(host, boot, int(pid), int(ticks))

    def __str__(self) -> str:
        return f"{self.host}:{self.boot_id}:{self.pid}:{self.start_ticks}"

    def is_mine_to_judge(self, user: int | None = None) -> bool:
        """Whether it can be told from here if it lives: same host, boot and pid namespace.

        Args:
            user: Whose process it is, where that is known; another user's is left to that user,
                also by root.
        """
        same_domain = (self.host, self.boot_id) == (hostname(), boot_id())
        return same_domain and user in {None, os.getuid()}

    def life(self, user: int | None = None) -> Life:
        """Whether this very process runs now; a zombie does not."""
        if not self.is_mine_to_judge(user):
            return Life.UNKNOWN
        try:
            return Life.ALIVE if start_ticks(self.pid) == self.start_ticks else Life.DEAD
        except ProcessLookupError:
            return Life.DEAD
        except PermissionError:
            return Life.UNKNOWN

    def is_dead(self, user: int | None = None) -> bool:
        """Whether this process is known to have ended."""
        return self.life(user) is Life.DEAD

    def has_freed_its_pid(self) -> bool:
        """Whether this process is known to have ended, and no later one has its pid (yet)."""
        if not self.is_mine_to_judge():
            return False
        try:
            start_ticks(self.pid)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False


@functools.cache
def hostname() -> str:
    """The name under which this host registers."""
    return socket.gethostname()


@functools.cache
def boot_id() -> str:
    """Changes with each boot and pid namespace, within which alone a pid means anything."""
    return f"{kernel_id()}.{_pid_namespace()}"


@functools.cache
def kernel_id() -> str:
    """Changes with each boot; shared by the containers of a host."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # macOS, and sandboxes with a kernel of their own
        return str(int(psutil.boot_time()))


def tag(*parts: object) -> str:
    """Six characters that stand for something in names of files."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:6]


def _pid_namespace() -> str:
    try:
        link = Path("/proc/self/ns/pid").readlink().name
    except OSError:
        return "0"
    return link.removeprefix("pid:[").removesuffix("]")


def start_ticks(pid: int) -> int:
    """When the process started, in clock ticks since the boot.

    Raises:
        ProcessLookupError: There is no such process, or it is a zombie.
        PermissionError: There is one, of which no more is shown than that.
    """
    try:
        # the command's name, in parentheses, may hold spaces and parentheses itself
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            raise _missing(pid) from None
        return _start_ticks_without_proc(pid)
    if fields[0] in {"Z", "X"}:
        raise ProcessLookupError(pid)
    return int(fields[19])


def _missing(pid: int) -> OSError:
    """Why /proc shows no such process: there is none, or it is hidden from this user."""
    with suppress(OverflowError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ProcessLookupError(pid)
        except PermissionError:
            return PermissionError(f"process {pid} is hidden")
        # one's own: it came or went between the two looks
        return PermissionError(f"process {pid} is not shown (any more)")
    return ProcessLookupError(pid)


def _start_ticks_without_proc(pid: int) -> int:
    try:
        return int(psutil.Process(pid).create_time() * 100)
    except psutil.Error as error:
        raise ProcessLookupError(pid) from error
