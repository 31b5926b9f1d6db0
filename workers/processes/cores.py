"""The cores of this host, and how a worker's pool processes share them.

A container may be shown all cores of its host and given the time of a few: its control group's
quota counts, not only the cores that the scheduler may put it on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from workers.processes.control_groups import groups


def count_cores() -> int:
    """How many cores this process may keep busy; at least one."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min([cores, *(round(quota) for quota in quotas())]))


def share_cores(slots: int) -> None:
    """Have this pool process compute with its share; to be called before torch is imported."""
    share = str(max(1, count_cores() // slots))
    os.environ.setdefault("OMP_NUM_THREADS", share)
    # tokenizers' own. TOKENIZERS_PARALLELISM is left unset: so the library goes without its threads
    # in a process that was forked, where they would be waited for, for ever
    os.environ.setdefault("RAYON_NUM_THREADS", share)


def quotas(root: Path = Path("/")) -> Iterator[float]:
    """What this process's control group, and each above it, may use; in cores.

    Args:
        root: Below which `/proc` and `/sys` lie.
    """
    for folder, top in groups("cpu", root):
        for group in (folder, *folder.parents):
            with suppress(OSError, ValueError, ZeroDivisionError):
                yield from _quota_of(group)
            if group == top:
                break


def _quota_of(group: Path) -> Iterator[float]:
    """The quota of one group, if it has any.

    Raises:
        OSError: The group is of the other version.
        ValueError: It holds what no kernel writes.
    """
    if (group / "cpu.max").exists():  # version 2
        time, period = (group / "cpu.max").read_text().split()
        if time != "max":
            yield int(time) / int(period)
    else:
        time_us = int((group / "cpu.cfs_quota_us").read_text())
        if time_us > 0:
            yield time_us / int((group / "cpu.cfs_period_us").read_text())
