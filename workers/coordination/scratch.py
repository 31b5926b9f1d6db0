"""Scratch directories: where all of a user's lie on a host, and how one is removed safely.

A scratch directory is named after the process that owns it, `<pid>-<start ticks>-<random>`, so
that whoever finds one can tell whether its owner still runs.

Invariant: nothing outside the own root is ever removed, and no link is followed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from pathlib import Path

from workers.coordination.identity import ProcessIdentity, boot_id, hostname
from workers.logs import get_logger

log = get_logger(__name__)


def scratch_root() -> Path:
    """The parent of all scratch directories of this user."""
    return Path(tempfile.gettempdir()) / f"trialfleet-{os.getuid()}"


def name_scratch(owner: ProcessIdentity) -> Path:
    """A new name for a scratch directory of `owner`; nothing is made yet."""
    return scratch_root() / f"{owner.pid}-{owner.start_ticks}-{uuid.uuid4().hex[:8]}"


def make_scratch(directory: Path) -> None:
    """Make a scratch directory that only this user can read."""
    scratch_root().mkdir(mode=0o700, exist_ok=True)
    directory.mkdir(mode=0o700)


def remove_scratch(directory: Path) -> None:
    """Remove a scratch directory, unless it lies elsewhere; of a link, only the link itself."""
    root = scratch_root()
    if directory.parent != root or root.is_symlink():
        log.warning("scratch_refused", directory=str(directory))
    elif directory.is_symlink():
        log.warning("scratch_is_a_link", directory=str(directory))
        directory.unlink(missing_ok=True)
    else:
        shutil.rmtree(directory, ignore_errors=True)


def remove_stale_scratch() -> list[Path]:
    """Remove what processes of this user that no longer run have left; what it was."""
    root = scratch_root()
    stale = [path for path in root.glob("*-*-*") if not _owner_runs(path)] if root.is_dir() else []
    for path in stale:
        remove_scratch(path)
    return stale


def _owner_runs(directory: Path) -> bool:
    pid, ticks, _ = directory.name.split("-", 2)
    if not (pid.isdecimal() and ticks.isdecimal()):
        return True  # none of ours
    return ProcessIdentity(hostname(), boot_id(), int(pid), int(ticks)).is_alive()
