"""The fleet's processes as a tree: hosts, workers, their pool processes, their loaders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text
from rich.tree import Tree

from workers.processes.registry import ProcessEntry


def draw_tree(entries: Sequence[ProcessEntry]) -> RenderableType:
    """Draw all processes under their hosts and parents."""
    if not entries:
        return Text("no process is registered; start one: celery -A workers worker")
    by_host: dict[str, list[ProcessEntry]] = defaultdict(list)
    for entry in entries:
        by_host[entry.identity.host].append(entry)
    root = Tree("fleet", hide_root=True)
    for host, members in sorted(by_host.items()):
        branch = root.add(Text(host, style="bold"))
        pids = {member.identity.pid for member in members}
        for member in members:
            if member.parent not in pids:
                _grow(branch, member, members)
    return root


def describe(entry: ProcessEntry) -> str:
    """One process on one line."""
    parts = [f"{entry.kind} {entry.identity.pid}"]
    if entry.slots:
        slots = "1 slot" if entry.slots == 1 else f"{entry.slots} slots"
        parts.append(f"{slots} on {', '.join(entry.queues)}")
    if entry.gpu is not None:
        parts.append(entry.gpu if entry.gpu.startswith("cpu") else f"gpu {entry.gpu}")
    if entry.study is not None:
        parts.append(f"{entry.study} trial {entry.trial}")
    elif entry.kind == "trial":
        parts.append("idle")
    if entry.is_draining:
        parts.append("draining")
    return f"{'  '.join(parts)}  lease {entry.lease_left_seconds:.0f} s"


def _grow(branch: Tree, entry: ProcessEntry, members: Sequence[ProcessEntry]) -> None:
    grown = branch.add(describe(entry))
    for member in members:
        if member.parent == entry.identity.pid:
            _grow(grown, member, members)
