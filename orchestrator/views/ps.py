"""The fleet's processes as a tree: hosts, workers, their pool processes, their loaders."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from rich.console import RenderableType
from rich.text import Text
from rich.tree import Tree

from orchestrator.status import UnreadableRecord
from orchestrator.views.amounts import brief_span, size
from workers.passwords import hide
from workers.processes.registry import ProcessEntry

#: Characters of an unreadable record and of its reason.
_SHOWN: Final = 200


def draw_tree(
    entries: Sequence[ProcessEntry], unreadable: Sequence[UnreadableRecord] = ()
) -> RenderableType:
    """Draw all processes under their hosts and parents, and what cannot be read below."""
    if not entries and not unreadable:
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
    if unreadable:
        branch = root.add(Text("records that this release cannot read", style="bold"))
        for each in unreadable:
            _grow_trouble(branch, f"{each.record[:_SHOWN]}: {each.reason[:_SHOWN]}")
    return root


def describe(entry: ProcessEntry) -> str:
    """One process on one line."""
    parts = [f"{entry.kind} {entry.identity.pid}"]
    if entry.slots:
        slots = "1 slot" if entry.slots == 1 else f"{entry.slots} slots"
        parts.append(f"{slots} on {', '.join(entry.queues)}")
    parts += _driven(entry)
    if entry.gpu is not None:
        parts.append(entry.gpu if entry.gpu.startswith("cpu") else f"gpu {entry.gpu}")
    if entry.aside is not None:
        parts.append("takes no trials")
    elif entry.study is not None:
        again = f" attempt {entry.attempt}" if (entry.attempt or 1) > 1 else ""
        parts.append(f"{printable(entry.study)} trial {entry.trial}{again}")
    elif entry.kind == "trial":
        parts.append("idle")
    if entry.activity is not None:
        parts.append(printable(entry.activity[:_SHOWN]))
    if entry.is_draining:
        parts.append("draining")
    if used := memory_text(entry):
        parts.append(used)
    if entry.started_at:
        parts.append(f"up {brief_span(time.time() - entry.started_at)}")
    parts.append(f"lease {entry.lease_left_seconds:.0f} s")
    return "  ".join(parts)


def _driven(entry: ProcessEntry) -> list[str]:
    """What an orchestrator drives, where it tells."""
    if entry.drives is not None:
        return [f"drives {printable(entry.drives)}"]
    if entry.shares is None:
        return []
    shared = sum(entry.shares.queues.values())
    return ["drives 1 study" if shared == 1 else f"drives {shared} studies"]


def memory_text(entry: ProcessEntry) -> str:
    """What a process uses, as of its last beat."""
    gpu = f" and {size(entry.memory.gpu)} of its GPU" if entry.memory.gpu else ""
    return f"{size(entry.memory.host)}{gpu}" if entry.memory.host else ""


def printable(text: str) -> str:
    """What somebody wrote somewhere: without passwords, and a terminal does not act on it."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in hide(text))


def _grow(branch: Tree, entry: ProcessEntry, members: Sequence[ProcessEntry]) -> None:
    grown = branch.add(Text(describe(entry)))
    for reason in [*filter(None, [entry.aside]), *entry.stalled]:
        _grow_trouble(grown, reason)
    for member in members:
        if member.parent == entry.identity.pid:
            _grow(grown, member, members)


def _grow_trouble(branch: Tree, text: str) -> None:
    branch.add(Text(f"! {printable(text)}", style="yellow"))
