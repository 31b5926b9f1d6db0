"""Shared memory that a killed process leaves in /dev/shm: what is its own by name, and no more.

torch names the segments in which tensors travel between processes `torch_<pid>_...`. The
semaphores of multiprocessing's queues would have random names; a pool process gives its own, and
those of its loaders, the prefix `trialfleet-<pid>`.

Invariant: only regular files of this user, named after a pid that is known to be dead, are removed.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from workers.coordination.identity import ProcessIdentity
from workers.logs import get_logger

log = get_logger(__name__)

_FOLDER: Final = Path("/dev/shm")  # noqa: S108 - the kernel's, not a temporary directory of ours


def semaphore_prefix(pid: int) -> str:
    """What multiprocessing is to put before the names of a process's semaphores."""
    return f"/trialfleet-{pid}"


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
        if any(path.name.startswith(prefix) for prefix in allowed) and _is_own_file(path):
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
