"""Shared memory that a killed process leaves in /dev/shm: what is its own by name, and no more.

torch names the segments in which tensors travel between processes `torch_<pid>_...`. The
semaphores of multiprocessing's queues would have random names; a pool process gives its own, and
those of its loaders, the prefix `trialfleet-<pid namespace>-<pid>`.

Invariant: only regular files of this user, named after a pid that is known to be dead, are removed,
torch's only while no process at all has them open: containers may share /dev/shm, and have the
same pids.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from workers.coordination.identity import ProcessIdentity, boot_id, tag
from workers.logs import get_logger

log = get_logger(__name__)

_FOLDER: Final = Path("/dev/shm")  # noqa: S108 - the kernel's, not a temporary directory of ours


def semaphore_prefix(pid: int) -> str:
    """What multiprocessing is to put before the names of a process's semaphores."""
    # macOS has no pid namespaces, and takes 31 characters in all
    return (
        f"/trialfleet-{tag(boot_id())}-{pid}" if sys.platform == "linux" else f"/trialfleet-{pid}"
    )


def remove_own_semaphores() -> None:
    """Remove the names of this process's semaphores; those who have them open keep them."""
    for path in _FOLDER.glob(f"sem.{semaphore_prefix(os.getpid()).removeprefix('/')}-*"):
        with suppress(OSError):
            path.unlink()


def shared_memory_prefixes(pid: int) -> list[str]:
    """How the names of all segments of a process begin."""
    return [f"torch_{pid}_", f"sem.{semaphore_prefix(pid).removeprefix('/')}-"]


def remove_shared_memory(owner: ProcessIdentity, prefixes: list[str]) -> list[Path]:
    """Remove what a dead process left; what could not be removed.

    Args:
        owner: The process. Nothing is done while it, or another under its pid, is there.
        prefixes: What it registered; those that do not carry its pid are not followed.
    """
    if not owner.has_freed_its_pid() or not _FOLDER.is_dir():
        return []
    allowed = set(shared_memory_prefixes(owner.pid)) & set(prefixes)
    removed, left = 0, []
    for path in _FOLDER.iterdir():
        own = any(path.name.startswith(prefix) for prefix in allowed) and _is_own_file(path)
        if own and not (path.name.startswith("torch_") and _is_in_use(path)):
            try:
                path.unlink(missing_ok=True)
                removed += 1
            except OSError:
                left.append(path)
    if removed:
        log.info("shared_memory_removed", pid=owner.pid, segments=removed)
    return left


def _is_own_file(path: Path) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid()


def _is_in_use(path: Path) -> bool:
    """Whether any process has a file open or mapped, also one that cannot be seen from here.

    The kernel grants a write lease on a file that nobody else has open.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return True  # in use, or a kernel without leases
    finally:
        os.close(descriptor)
    return False
