"""The session that a pool process leads: all that it started, ended as one when it has died.

Invariant: only members of a session whose leader is known to be dead are killed, and the leader's
exit code is left to its parent.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import psutil

from workers.coordination.identity import ProcessIdentity

#: How long a killed process may take to be gone; one in the kernel's hands takes longer.
_GONE_SECONDS: Final = 0.5


def end_session(leader: ProcessIdentity) -> list[int]:
    """Kill what is left of the session that a dead process led; nothing else is touched.

    The kernel gives a pid to no new process while it still names a session. So where another
    process has the leader's pid now, the session had ended, and one of that name is a stranger's.

    Returns:
        The pids of those that were killed and are still there.
    """
    if not leader.has_freed_its_pid():
        return []
    members = list(_members(leader.pid))
    for process in members:
        with suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(members, _GONE_SECONDS)
    return [process.pid for process in alive if _is_alive(process)]


def _members(session: int) -> Iterator[psutil.Process]:
    """All but the leader: to wait for it here would take its exit code from the pool.

    The pool would believe in it for ever, and never start another in its place.
    """
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if process.pid != session and os.getsid(process.pid) == session:
                yield process


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
