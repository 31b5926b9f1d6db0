"""Waits for the deaths of some processes, told by the kernel (pidfd) or, without it, by looking.

Invariant: a process that ended is reported once, and never mistaken for a later one with its pid.
"""

from __future__ import annotations

import errno
import os
import select
import time
from contextlib import suppress

from workers.coordination.identity import ProcessIdentity


class ChildWatch:
    """A set of watched processes; used by one thread."""

    def __init__(self) -> None:
        self._identities: dict[int, ProcessIdentity] = {}
        self._descriptors: dict[int, int] = {}
        self._poll = select.poll()

    @property
    def is_watching(self) -> bool:
        """Whether a watched process may still run."""
        return bool(self._identities)

    def add(self, pid: int) -> None:
        """Watch a process; one that is watched already, or gone, is left."""
        if pid in self._identities:
            return
        with suppress(ProcessLookupError):
            self._identities[pid] = ProcessIdentity.of(pid)
            descriptor = _open_pidfd(pid)
            if descriptor is not None:
                self._descriptors[pid] = descriptor
                self._poll.register(descriptor, select.POLLIN)

    def wait(self, timeout_seconds: float) -> list[ProcessIdentity]:
        """The processes that ended, as soon as one does or the time is up.

        With pidfd, these can be waited for: all their threads have ended.
        """
        if self._descriptors:
            readable = {descriptor for descriptor, _ in self._poll.poll(timeout_seconds * 1000)}
        else:
            readable = set()
            time.sleep(timeout_seconds)
        ended = [
            identity
            for pid, identity in self._identities.items()
            if (
                self._descriptors[pid] in readable
                if pid in self._descriptors
                else identity.is_dead()
            )
        ]
        for identity in ended:
            self._drop(identity.pid)
        return ended

    def close(self) -> None:
        """Stop watching."""
        for pid in list(self._identities):
            self._drop(pid)

    def _drop(self, pid: int) -> None:
        del self._identities[pid]
        descriptor = self._descriptors.pop(pid, None)
        if descriptor is not None:
            self._poll.unregister(descriptor)
            os.close(descriptor)


def _open_pidfd(pid: int) -> int | None:
    """A descriptor that tells of a process's end; None where the kernel or a sandbox has none."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in {errno.ENOSYS, errno.EPERM, errno.EINVAL}:
            return None
        raise
