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
from collections.abc import Callable
from pathlib import Path
from typing import Final

from workers.coordination.identity import ProcessIdentity, boot_id, hostname
from workers.logs import get_logger

log = get_logger(__name__)


#: Tells the processes below one whose temporary files go elsewhere where the root is.
_ROOT_VARIABLE: Final = "FLEET_SCRATCH_ROOT"


def scratch_root() -> Path:
    """The parent of all scratch directories of this user."""
    given = os.environ.get(_ROOT_VARIABLE)
    return Path(given or Path(tempfile.gettempdir()) / f"trialfleet-{os.getuid()}")


def redirect_temporary_files(directory: Path) -> Callable[[], None]:
    """Have this process, and all that it starts, make their temporary files in a directory.

    Libraries make some, and remove them only on an exit that a pool process never sees.

    Returns:
        What undoes it.
    """
    before = {name: os.environ.get(name) for name in (_ROOT_VARIABLE, "TMPDIR")}

    def restore() -> None:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        tempfile.tempdir = None  # to be found out anew

    os.environ[_ROOT_VARIABLE] = str(scratch_root())
    os.environ["TMPDIR"] = str(directory)
    tempfile.tempdir = None
    return restore


def name_scratch(owner: ProcessIdentity) -> Path:
    """A new name for a scratch directory of `owner`; nothing is made yet."""
    return scratch_root() / f"{owner.pid}-{owner.start_ticks}-{uuid.uuid4().hex[:8]}"


def make_scratch(directory: Path) -> None:
    """Make a scratch directory that only this user can read."""
    scratch_root().mkdir(mode=0o700, exist_ok=True)
    directory.mkdir(mode=0o700)


def remove_scratch(directory: Path) -> bool:
    """Remove a scratch directory, unless it lies elsewhere; of a link, only the link itself.

    Returns:
        Whether nothing of it is left that could be removed.
    """
    root = scratch_root()
    if directory.parent != root or root.is_symlink():
        log.warning("scratch_refused", directory=str(directory))
        return True
    if directory.is_symlink():
        log.warning("scratch_is_a_link", directory=str(directory))
        directory.unlink(missing_ok=True)
    else:
        shutil.rmtree(directory, ignore_errors=True)
    return not os.path.lexists(directory)


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
