"""What a fleet may leave behind and must not: processes, memory, files, keys, second ends."""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil
import redis

from workers.coordination import keys

#: Optuna's numbers in its journal: of the operation that sets a trial's state, and of the states
#: that end one.
_SET_TRIAL_STATE_VALUES: Final = 6
_ENDED: Final = {1, 2, 3}


def processes_of(home: Path) -> list[str]:
    """All processes that were started for the fleet of a home, by their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            is_own = process.environ().get("FLEET_HOME") == str(home)
            if is_own and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline())[:120]}")
    return found


def shared_memory() -> set[str]:
    """What lies in /dev/shm."""
    return {path.name for path in Path("/dev/shm").glob("*")}  # noqa: S108 - the kernel's


def keys_of(client: redis.Redis, study: str) -> list[str]:
    """What Redis holds of a study that is over, beyond what expires."""
    sets = keys.leases(study), keys.queued(study), keys.paused(study)
    found = [key for key in sets if client.zcard(key)]
    found += [keys.inbox(study)] if client.xlen(keys.inbox(study)) else []
    trials = client.scan_iter(match=f"fleet:{{{study}}}:trial:*", count=1000)
    return found + [key for key in trials if client.ttl(key) < 0]


def files_of(home: Path, temporary: Path) -> list[str]:
    """Directories and files that ended trials and processes should have taken with them.

    Args:
        home: The fleet's `FLEET_HOME`.
        temporary: Its `TMPDIR`, which it has for itself.
    """
    patterns = ["outbox/*", "checkpoints/*/*/*", "studies/*/attempts/*"]
    found = [path for pattern in patterns for path in home.glob(pattern)]
    root = temporary / f"trialfleet-{os.getuid()}"
    found += [path for path in temporary.glob("*") if path != root]
    return [str(path) for path in [*found, *root.glob("*")]]


def ends_in_journal(home: Path, study: str) -> Counter[int]:
    """How often each trial was told to have ended."""
    lines = (home / "studies" / study / "journal.log").read_text().splitlines()
    return Counter(
        operation["trial_id"]
        for operation in map(json.loads, lines)
        if operation["op_code"] == _SET_TRIAL_STATE_VALUES and operation["state"] in _ENDED
    )
