"""Removing all that a home holds of a study that was deleted: results, checkpoints, its journal.

Invariant: a study's folders are gone in one step each, whatever becomes of the process: they are
put aside first, and what lies aside is removed at the next look.
"""

from __future__ import annotations

import errno
import shutil
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from workers.disk.manifests import checkpoint_root

#: Below a home: what is being removed.
_ASIDE: Final = "deleted"


def remove_study(home: Path, study: str) -> bool:
    """Remove what a home holds of a study; whether there was anything.

    Raises:
        OSError: It cannot be put aside.
    """
    found = False
    for folder in _folders(home, study):
        with suppress(FileNotFoundError):
            _put_aside(home, folder)
            found = True
    remove_aside(home)
    return found


def _put_aside(home: Path, folder: Path) -> None:
    aside = home / _ASIDE / f"{folder.name}-{uuid.uuid4().hex[:8]}"
    aside.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.rename(aside)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.rmtree(folder)  # a disk of its own


def remove_aside(home: Path) -> None:
    """Remove what was put aside, by whomever, as far as that is possible."""
    aside = home / _ASIDE
    if aside.is_dir():
        shutil.rmtree(aside, ignore_errors=True)


def studies_in(home: Path, names: Iterable[str]) -> list[str]:
    """Those of some studies of which a home holds anything."""
    return [name for name in names if any(folder.exists() for folder in _folders(home, name))]


def is_put_back(home: Path, study: str) -> bool:
    """Whether a study that was deleted has results here: somebody brought them from a copy.

    Its deletion is done once the journal is gone.
    """
    return (home / "studies" / study / "journal.log").exists()


def _folders(home: Path, study: str) -> tuple[Path, Path]:
    return home / "studies" / study, checkpoint_root(home) / study
