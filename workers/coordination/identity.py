"""Who a process is: host, boot, pid and start time, which together are never used again."""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path
from typing import NamedTuple, Self

import psutil


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
        """Read what `str` wrote."""
        host, boot, pid, ticks = text.rsplit(":", 3)
        return cls(host, boot, int(pid), int(ticks))

    def __str__(self) -> str:
        return f"{self.host}:{self.boot_id}:{self.pid}:{self.start_ticks}"

    @property
    def is_local(self) -> bool:
        """Whether the process was started on this host, since its boot, where its pid is seen."""
        return (self.host, self.boot_id) == (hostname(), boot_id())

    def is_alive(self) -> bool:
        """Whether this very process runs on this host now (a zombie does not)."""
        if not self.is_local:
            return False
        try:
            return start_ticks(self.pid) == self.start_ticks
        except ProcessLookupError:
            return False

    def has_freed_its_pid(self) -> bool:
        """Whether this process of this host ended, and no later one has its pid (yet)."""
        if not self.is_local:
            return False
        try:
            start_ticks(self.pid)
        except ProcessLookupError:
            return True
        return False


@functools.cache
def hostname() -> str:
    """The name under which this host registers."""
    return socket.gethostname()


@functools.cache
def boot_id() -> str:
    """Changes with each boot and pid namespace, within which alone a pid means anything."""
    path = Path("/proc/sys/kernel/random/boot_id")
    if not path.exists():
        return str(int(psutil.boot_time()))
    namespace = Path("/proc/self/ns/pid").readlink().name.removeprefix("pid:[").removesuffix("]")
    return f"{path.read_text().strip()}.{namespace}"


def start_ticks(pid: int) -> int:
    """When the process started, in clock ticks since the boot.

    Raises:
        ProcessLookupError: There is no such process, or it is a zombie.
    """
    try:
        # the command's name, in parentheses, may hold spaces and parentheses itself
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            raise ProcessLookupError(pid) from None
        return _start_ticks_without_proc(pid)
    if fields[0] in {"Z", "X"}:
        raise ProcessLookupError(pid)
    return int(fields[19])


def _start_ticks_without_proc(pid: int) -> int:
    try:
        return int(psutil.Process(pid).create_time() * 100)
    except psutil.Error as error:
        raise ProcessLookupError(pid) from error
