"""The members of the fleet: whether there are some, whether they agree, what they complain of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from orchestrator.doctor.findings import Finding, error, ok, warning
from orchestrator.doctor.traps import AT_LEAST, AT_MOST, EXACTLY, fallen_into
from orchestrator.fleet import Fleet
from orchestrator.status import UnreadableRecord
from workers.processes.registry import ProcessEntry
from workers.protocol.states import ProcessKind


@dataclass(frozen=True)
class MemberFacts:
    """What was seen of the fleet's processes."""

    entries: tuple[ProcessEntry, ...]
    #: Of whoever looks.
    release: str
    secrets: tuple[str, ...] = ()
    unreadable: tuple[UnreadableRecord, ...] = ()

    def of_kind(self, *kinds: ProcessKind) -> list[ProcessEntry]:
        """Those of some kinds."""
        return [entry for entry in self.entries if entry.kind in kinds]


def look(fleet: Fleet, release: str) -> MemberFacts:
    """See who is there.

    Raises:
        redis.RedisError: Redis does not answer.
    """
    entries, unreadable = fleet.process_records()
    marks = tuple(fleet.settings.seal.marks())
    return MemberFacts(tuple(entries), release, marks, tuple(unreadable))


def orchestrators(facts: MemberFacts) -> Iterator[Finding]:
    """Whether somebody drives studies."""
    found = facts.of_kind(ProcessKind.ORCHESTRATOR)
    if not found:
        told = "none runs: no study gets on"
        yield error("orchestrator", told, "trialfleet serve")
    else:
        yield ok("orchestrator", f"runs on {_places(found)}")


def workers(facts: MemberFacts) -> Iterator[Finding]:
    """Whether somebody runs trials."""
    found = facts.of_kind(ProcessKind.MAIN)
    ready = [entry for entry in found if not entry.is_draining]
    if not ready:
        told = "all are draining" if found else "none runs: no trial is begun"
        yield error("workers", told, "celery -A workers worker")
        return
    slots = sum(entry.slots for entry in ready)
    queues = ", ".join(sorted({queue for entry in ready for queue in entry.queues}))
    shown = "1 slot" if slots == 1 else f"{slots} slots"
    yield ok("workers", f"{shown} for queue {queues}: {_places(ready)}")


def releases(facts: MemberFacts) -> Iterator[Finding]:
    """Whether all are of one release."""
    others = [
        entry
        for entry in _members(facts)
        if entry.membership is None or entry.membership.release != facts.release
    ]
    for entry in others:
        release = "an earlier release" if entry.membership is None else entry.membership.release
        told = f"{_shown(entry)} is of {release}, and this command of {facts.release}"
        yield warning(
            "release", told, f"pip install trialfleet=={facts.release}, and start it anew"
        )
    if not others and _members(facts):
        yield ok("release", f"all are of {facts.release}")


def secrets(facts: MemberFacts) -> Iterator[Finding]:
    """Whether what each signs is taken by all others."""
    told = {
        _shown(entry): tuple(entry.membership.secrets)
        for entry in _members(facts)
        if entry.membership is not None
    }
    told["this command"] = facts.secrets
    apart = sorted(
        who for who, accepted in told.items() if not _agrees(accepted, list(told.values()))
    )
    if apart and len(told) > 1:
        fix = "the same FLEET_SECRET for all; to change it, list both: new,old"
        yield error("FLEET_SECRET", f"differs from that of others: {', '.join(apart)}", fix)
    elif not facts.secrets:
        yield ok("FLEET_SECRET", "none: whoever can write to Redis is trusted")
    else:
        yield ok("FLEET_SECRET", "the same for all")


def celery(facts: MemberFacts) -> Iterator[Finding]:
    """Whether a worker runs with settings under which trials are lost."""
    told = [entry for entry in facts.of_kind(ProcessKind.MAIN) if entry.membership is not None]
    is_fine = True
    for entry in told:
        for trap in fallen_into(entry.membership.celery if entry.membership else {}):
            is_fine = False
            shown = f"{_shown(entry)}: {trap.setting} is {trap.found!r}: {trap.otherwise}"
            fix = f"{trap.setting} = {trap.wanted}, as celery -A workers worker has it"
            yield error("Celery", shown, fix)
    if told and is_fine:
        num_settings = len(EXACTLY) + len(AT_LEAST) + len(AT_MOST)
        yield ok("Celery", f"{num_settings} settings under which trials are lost: none is set")


def complaints(facts: MemberFacts) -> Iterator[Finding]:
    """What processes say of themselves."""
    for entry in facts.entries:
        if entry.aside is not None:
            told = f"{_shown(entry)} takes no trials: {entry.aside}"
            yield error("slots", told, "mend that device, and start its worker anew")
        for reason in entry.stalled:
            fix = "mend that; the process tries again by itself"
            yield warning("processes", f"{_shown(entry)}: {reason}", fix)
    for record in facts.unreadable:
        told = f"{record.record[:80]} cannot be read: {record.reason[:160]}"
        yield warning("records", told, "the same release of trialfleet on every machine")


CHECKS: Final[tuple[Callable[[MemberFacts], Iterator[Finding]], ...]] = (
    orchestrators, workers, releases, secrets, celery, complaints,
)  # fmt: skip


def _members(facts: MemberFacts) -> list[ProcessEntry]:
    return facts.of_kind(ProcessKind.ORCHESTRATOR, ProcessKind.MAIN)


def _agrees(own: Sequence[str], all_of_them: Sequence[Sequence[str]]) -> bool:
    """Whether most others take what it signs, and it what they do."""
    fitting = [
        each
        for each in all_of_them
        if (not own and not each) or (own and each and own[0] in each and each[0] in own)
    ]
    return 2 * len(fitting) > len(all_of_them)


def _shown(entry: ProcessEntry) -> str:
    role = "worker" if entry.kind is ProcessKind.MAIN else entry.kind.value
    return f"{role} {entry.identity.pid} on {entry.identity.host}"


def _places(entries: Sequence[ProcessEntry]) -> str:
    return ", ".join(sorted({entry.identity.host for entry in entries}))
