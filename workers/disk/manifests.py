"""The manifests of checkpoints: what lies on disk for a trial, read without loading any of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Final

from workers.coordination.trial_record import CheckpointRef

#: The file beside a checkpoint's state that names its step and its sum.
MANIFEST: Final = "manifest.json"


def checkpoint_root(home: Path) -> Path:
    """The root of all checkpoints under a home: `<root>/<study>/<number>/<token>/step-<step>`."""
    return home / "checkpoints"


def read_manifests(trial_folder: Path) -> list[CheckpointRef]:
    """All checkpoints of a trial, of whatever attempt, that were written to their end."""
    found = []
    for path in trial_folder.glob(f"*/step-*/{MANIFEST}"):
        try:
            content = json.loads(path.read_text())
            ref = CheckpointRef(int(content["step"]), str(path.parent), str(content["sha256"]))
        except (OSError, ValueError, KeyError):
            continue  # being removed, or damaged: as good as absent
        found.append(ref)
    return found


def last_checkpoint(home: Path, study: str, number: int) -> CheckpointRef | None:
    """The furthest checkpoint of a trial on this machine's disk, if there is one."""
    return max(read_manifests(checkpoint_root(home) / study / str(number)), default=None)


def remove_checkpoints(home: Path, study: str, number: int) -> None:
    """Drop all checkpoints of a trial."""
    shutil.rmtree(checkpoint_root(home) / study / str(number), ignore_errors=True)
