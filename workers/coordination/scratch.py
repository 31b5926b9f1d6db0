"""Scratch directories: where all of a user's lie on a host, and how one is removed safely.

Invariant: nothing outside the own root is ever removed, and no link is followed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from workers.logs import get_logger

log = get_logger(__name__)


def scratch_root() -> Path:
    """The parent of all scratch directories of this user."""
    return Path(tempfile.gettempdir()) / f"trialfleet-{os.getuid()}"


def remove_scratch(directory: Path) -> None:
    """Remove a registered scratch directory, unless it is a link or lies elsewhere."""
    root = scratch_root()
    if directory.parent != root or directory.is_symlink() or root.is_symlink():
        log.warning("scratch_refused", directory=str(directory))
        return
    shutil.rmtree(directory, ignore_errors=True)
