"""The control groups that this process is in: where they lie, and what memory they leave it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

#: From here on, version 1 means that there is no limit: whole pages up to 2^63.
_UNLIMITED: Final = 2**62


def groups(controller: str, root: Path = Path("/")) -> Iterator[tuple[Path, Path]]:
    """This process's groups of a controller, each with where its hierarchy is mounted.

    Args:
        controller: `cpu` or `memory`.
        root: Below which `/proc` and `/sys` lie.
    """
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
            is_v1 = kind == "cgroup" and controller in controllers.split(",")
            if is_v2 or (is_v1 and controller in options.split(",")):
                inside, point = before.split()[3:5]
                top = root / point.lstrip("/")
                # a container sees its own group mounted, and may see its path as its host does
                with suppress(ValueError):
                    yield top / Path(path).relative_to(inside), top


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes that this process's group, and those above it, leave to it; None for all there is."""
    found = []
    for folder, top in groups("memory", root):
        for group in (folder, *folder.parents):
            for name in ("memory.max", "memory.limit_in_bytes"):
                with suppress(OSError, ValueError):  # of the other version, or `max`
                    found.append(int((group / name).read_text()))
            if group == top:
                break
    return min((limit for limit in found if limit < _UNLIMITED), default=None)
