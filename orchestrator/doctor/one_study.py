"""One study: what keeps it from getting on, as the orchestrator and its workers tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from orchestrator.doctor.findings import Finding, error, ok, warning
from orchestrator.fleet import Fleet
from orchestrator.status import StudyStatus
from workers.coordination.studies import Studies
from workers.protocol.spec import StudySpec


@dataclass(frozen=True)
class StudyFacts:
    """What was seen of a study."""

    spec: StudySpec
    status: StudyStatus
    #: Why workers take no trials of it, by host.
    refusals: tuple[tuple[str, str], ...] = ()


def look(fleet: Fleet, name: str) -> StudyFacts:
    """See how a study gets on.

    Raises:
        InvalidInputError: There is none of that name, or it cannot be read.
    """
    status = fleet.study(name).status()
    refusals = {
        (entry.identity.host, entry.refuses[name])
        for entry in fleet.processes()
        if name in entry.refuses
    }
    return StudyFacts(Studies(fleet.client).spec(name), status, tuple(sorted(refusals)))


def objective(facts: StudyFacts) -> Iterator[Finding]:
    """Whether each worker that was asked has it."""
    for host, reason in facts.refusals:
        told = f"{host} takes no trial of it: {reason}"
        yield error("objective", told, f"mend that on {host}; `trialfleet try` shows more")
    if not facts.refusals and _was_begun(facts.status):
        yield ok("objective", f"workers run {facts.spec.objective}, and none has refused it")
    elif not facts.refusals and not facts.status.is_over:
        told = f"no worker has tried {facts.spec.objective} yet: a worker imports it for a trial"
        yield warning("objective", told, "have a worker take a trial, and look again")


def _was_begun(status: StudyStatus) -> bool:
    """Whether an attempt of the study has begun on a worker."""
    begun = ("running", "paused", "complete", "pruned", "failed", "dead")
    return any(status.trials.get(state) for state in begun) or bool(status.requeued)


def code(facts: StudyFacts) -> Iterator[Finding]:
    """Whether workers have the file that was submitted."""
    for line in facts.status.other_code:
        yield warning("code", line, "bring the file to that host, or ship it: `code: {ship: ...}`")


def progress(facts: StudyFacts) -> Iterator[Finding]:
    """Whether it waits for something, or stands still."""
    stalled = facts.status.stalled
    if stalled is not None:
        yield error("progress", f"it stands still: {stalled}", "mend that; it goes on by itself")
    for reason in facts.status.waits_for:
        told, _, fix = reason.partition(": ")
        yield warning("progress", told, fix or "see `trialfleet watch`")
    if stalled is None and not facts.status.waits_for:
        yield ok("progress", f"{facts.status.state}, and waits for nothing")


CHECKS: Final[tuple[Callable[[StudyFacts], Iterator[Finding]], ...]] = (objective, code, progress)
