"""A trial through the whole fleet: submitted, claimed, reported, told; and nothing of it is left.

Invariant: its study is deleted on every way out; where this process was killed, by the next doctor
on the host.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from orchestrator.doctor.findings import Finding, error, ok, warning
from orchestrator.fleet import Fleet
from orchestrator.local.delete_study import delete_study
from orchestrator.status import StudyStatus
from orchestrator.submission.submit import submit
from workers.coordination.identity import ProcessIdentity, tag
from workers.coordination.studies import Studies
from workers.processes.registry import ProcessEntry
from workers.protocol.errors import FleetError, StudyNotKnownError
from workers.protocol.spec import SELF_CHECK, StudySpec
from workers.protocol.states import ProcessKind
from workers.protocol.study_options import WandbSpec
from workers.settings import Settings

#: How long a fleet with a free slot may take; most of it is its first trial's import.
PATIENCE_SECONDS: Final = 30.0

_PREFIX: Final = "doctor-"
_LOOK_SECONDS: Final = 0.1


def has_fleet(entries: tuple[ProcessEntry, ...]) -> bool:
    """Whether one can be tried: it has an orchestrator, and a worker that takes trials."""
    is_driven = any(entry.kind is ProcessKind.ORCHESTRATOR for entry in entries)
    return is_driven and any(
        entry.kind is ProcessKind.MAIN and not entry.is_draining for entry in entries
    )


def try_fleet(
    fleet: Fleet, queue: str | None = None, patience_seconds: float = PATIENCE_SECONDS
) -> Finding:
    """Run one trial that trains nothing.

    Args:
        fleet: Has an orchestrator and a worker.
        queue: Whose slots; by default one that a worker reads.
        patience_seconds: How long it may take.
    """
    remove_leftovers(fleet)
    queue = queue or _queue(fleet)
    spec = StudySpec(
        name=_name(os.getpid()),
        objective=SELF_CHECK,
        trials=1,
        max_failures=1,
        direction="minimize",
        wandb=WandbSpec(mode="disabled"),
        resources={"queue": queue},  # type: ignore[arg-type]  # pydantic takes it as a file has it
    )
    before = time.monotonic()
    with _removed(spec.name, fleet.settings):
        try:
            submit(spec, fleet.settings, import_directory=Path.cwd())
        except FleetError as problem:
            return error("a trial", f"it was not taken: {problem}", "mend that, and look again")
        status = _await(fleet, spec.name, before + patience_seconds)
        return _judge(status, time.monotonic() - before, _free_slots(fleet, queue))


def remove_leftovers(fleet: Fleet) -> None:
    """Delete what a doctor left that was killed on this host."""
    own = f"{_PREFIX}{_host()}-"
    for name in Studies(fleet.client).names():
        pid = name.removeprefix(own)
        if name.startswith(own) and pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            with suppress(FleetError):
                delete_study(name, fleet.settings, cancels=True)


def _judge(status: StudyStatus, seconds: float, free_slots: int) -> Finding:
    if status.trials["complete"]:
        return ok("a trial", f"went through the whole fleet in {seconds:.1f} s")
    failed = next((each.error for each in status.recent if each.error), None)
    if failed is not None:
        told = f"it failed: {failed}"
        return error("a trial", told, "trialfleet ps, and the log of the worker")
    if status.trials["running"]:
        told = f"it began, and has not ended after {seconds:.0f} s"
        return error("a trial", told, "trialfleet ps, and the logs of worker and orchestrator")
    waits = "; ".join([*filter(None, [status.stalled]), *status.waits_for])
    if not free_slots and not waits:
        told = f"all slots were busy for {seconds:.0f} s, so none was run"
        return warning("a trial", told, "look again later, or start another worker")
    told = f"none was begun in {seconds:.0f} s{f': {waits}' if waits else ''}"
    return error("a trial", told, "trialfleet ps, and the logs of worker and orchestrator")


def _await(fleet: Fleet, name: str, deadline: float) -> StudyStatus:
    while True:
        status = fleet.study(name).status()
        if status.is_over or time.monotonic() > deadline:
            return status
        time.sleep(_LOOK_SECONDS)


def _queue(fleet: Fleet) -> str:
    """The default one, if a worker reads it."""
    found = {queue for entry in fleet.processes() for queue in entry.queues}
    return "default" if "default" in found or not found else min(found)


def _free_slots(fleet: Fleet, queue: str) -> int:
    """Slots of a queue that run no other study's trial."""
    entries = fleet.processes()
    slots = sum(entry.slots for entry in entries if queue in entry.queues)
    busy = sum(
        entry.study is not None and not entry.study.startswith(_PREFIX)
        for entry in entries
        if entry.kind is ProcessKind.TRIAL
    )
    return slots - busy


def _host() -> str:
    return tag(ProcessIdentity.current().host)


def _name(pid: int) -> str:
    return f"{_PREFIX}{_host()}-{pid}"


@contextmanager
def _removed(name: str, settings: Settings) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(StudyNotKnownError):  # it was not taken
            delete_study(name, settings, cancels=True)
