"""What keeps a submitted study from getting on, as far as the fleet's processes show it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from orchestrator.status import StudyStatus
from orchestrator.views.other_code import is_without_its_code
from workers.processes.registry import ProcessEntry
from workers.processes.slots import has_slot_beside
from workers.protocol.spec import StudySpec
from workers.protocol.states import ProcessKind

#: No orchestrator that gets on leaves a status so old, nor do thousands of studies that rest: each
#: of those is looked at after a third of a lease, and then in one of 64 turns.
_OLD_LEASES: Final = 4

#: What people see of their orders until they are in the storage.
_ORDERS: Final = (
    "what was ordered (`enqueue`, `retry`) waits for it, and is not counted as trials yet"
)


def obstacles(
    spec: StudySpec,
    status: StudyStatus,
    entries: Sequence[ProcessEntry],
    *,
    left_by_run: bool = False,
    shown_seconds: float | None = None,
    lease_seconds: float = 45.0,
    has_orders: bool = False,
) -> list[str]:
    """What a study that is not over waits for, each with what to do about it.

    Args:
        spec: The study.
        status: As the orchestrator last published it.
        entries: The live processes of the fleet.
        left_by_run: Whether `trialfleet run`, which began it, was interrupted.
        shown_seconds: How long ago the orchestrator published something, by the clock of Redis;
            None if it never did.
        lease_seconds: How long an orchestrator's right to drive a study lasts.
        has_orders: Whether orders of people wait for an orchestrator, and are counted nowhere.
    """
    if status.is_over:
        return []
    if left_by_run:
        interrupted = "`trialfleet run` began it and was interrupted"
        way_out = "run it again, or hand it to an orchestrator by `trialfleet submit`"
        return [f"{interrupted}: {way_out}{_as_of(status)}", *([_ORDERS] if has_orders else [])]
    found = []
    orchestrators = [entry for entry in entries if entry.kind is ProcessKind.ORCHESTRATOR]
    if not any(entry.drives in {None, spec.name} for entry in orchestrators):
        which = "that drives it " if orchestrators else ""
        found.append(f"no orchestrator {which}runs: start `trialfleet serve`{_as_of(status)}")
        found += [_ORDERS] if has_orders else []
    elif status.stalled is None and (shown_seconds or 0.0) > _OLD_LEASES * lease_seconds:
        found.append(
            "its orchestrator runs, and has not looked at it for long: a turn hangs, on a disk or a"
            f" database maybe; its log says where, and starting it anew is safe{_as_of(status)}"
        )
    without_worker = _without_worker(spec.resources.queue, entries)
    if without_worker is not None:
        found.append(without_worker)
    if is_without_its_code(spec, entries):
        found.append(
            "no worker has the objective's file as it was submitted, and `code.must_match` is set:"
            " bring it to the workers, or submit the study with theirs"
        )
    found += refusals(spec, entries)
    return found


def refusals(spec: StudySpec, entries: Sequence[ProcessEntry]) -> list[str]:
    """Why workers take no trial of the study, with the hosts; first whether all do."""
    refusing = [entry for entry in entries if spec.name in entry.refuses]
    if not refusing:
        return []
    rest = has_slot_beside(spec.resources.queue, entries, {entry.identity for entry in refusing})
    consequence = "its trials are left to others" if rest else "no worker takes its trials"
    hosts: dict[str, set[str]] = {}
    for entry in refusing:
        hosts.setdefault(entry.refuses[spec.name], set()).add(entry.identity.host)
    return [
        f"{consequence} ({', '.join(sorted(names))}): {reason}"
        for reason, names in sorted(hosts.items())
    ]


def _without_worker(queue: str, entries: Sequence[ProcessEntry]) -> str | None:
    """Why no worker takes trials from a queue, if none does."""
    workers = [entry for entry in entries if entry.kind is ProcessKind.MAIN]
    readers = [entry for entry in workers if queue in entry.queues]
    if any(not entry.is_draining for entry in readers):
        return None
    command = f"start `celery -A workers worker -Q {queue}`"
    if not workers:
        return f"no worker runs: {command}"
    if readers:
        return f"all workers that take trials from queue {queue!r} are draining: {command}"
    others = sorted({name for entry in workers for name in entry.queues})
    return (
        f"no worker takes trials from queue {queue!r}, and there are workers for"
        f" {', '.join(others)}: {command}, or name one of these as the study's `resources.queue`"
    )


def _as_of(status: StudyStatus) -> str:
    if status.as_of is None:
        return "; it has not been looked at yet"
    told = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status.as_of))
    return f"; what is shown is as of {told}"
