"""The cores of this host, and how a worker's pool processes share them.

A container may be shown all cores of its host and given the time of a few: its control group's
quota counts, not only the cores that the scheduler may put it on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


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
    for folder, top in _groups(root):
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


def _groups(root: Path) -> Iterator[tuple[Path, Path]]:
    """This process's groups that limit processor time, each with where its hierarchy is mounted."""
    try:
        own = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return  # no Linux
    for _, controllers, path in (line.split(":", 2) for line in own if line.count(":") > 1):
        for mount in mounts:
            before, _, after = mount.partition(" - ")
            kind, _, options = [*after.split(), "", "", ""][:3]
            is_v2 = kind == "cgroup2" and not controllers
            is_v1 = kind == "cgroup" and "cpu" in controllers.split(",")
            if is_v2 or (is_v1 and "cpu" in options.split(",")):
                inside, point = before.split()[3:5]
                top = root / point.lstrip("/")
                # a container sees its own group mounted, and may see its path as its host does
                with suppress(ValueError):
                    yield top / Path(path).relative_to(inside), top
