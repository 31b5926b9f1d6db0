"""What trials that ended left on this machine's disk: checkpoints, and drafts of their results.

A worker takes them along itself; this is for those whose process died between commit and clean-up.

Invariant: what a trial that may still run needs is left, and so is a result that was accepted.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import redis

from workers.coordination.leases import TrialRecord
from workers.coordination.studies import Studies
from workers.disk.manifests import checkpoint_root, remove_checkpoints
from workers.logs import get_logger
from workers.protocol.states import TrialState

log = get_logger(__name__)


def remove_ended(client: redis.Redis, home: Path) -> list[Path]:
    """Remove what ended trials left under a home; what it was."""
    removed = []
    for study, number, path, record in _found(client, home):
        if path.name.isdecimal():
            remove_checkpoints(home, study, number)
        elif path.name != f"attempt-{record.result_token}" or record.state is TrialState.DEAD:
            shutil.rmtree(path, ignore_errors=True)
        else:
            continue  # accepted, and about to be published
        removed.append(path)
    if removed:
        log.info("ended_trials_cleaned", paths=len(removed))
    return removed


def _found(client: redis.Redis, home: Path) -> Iterator[tuple[str, int, Path, TrialRecord]]:
    """Directories of trials that Redis knows to have ended."""
    studies = Studies(client)
    checkpoints = (
        (path.parent.name, path.name, path) for path in checkpoint_root(home).glob("*/*")
    )
    drafts = (
        (path.parents[2].name, path.parent.name, path)
        for path in home.glob("studies/*/trials/*/attempt-*")
    )
    for study, number, path in [*checkpoints, *drafts]:
        if number.isdecimal() and studies.exists(study):
            record = studies.leases(study).record(int(number))
            if record is not None and record.state.is_terminal:
                yield study, int(number), path, record
