"""Workers whose objective is not the one that was submitted, for people to know."""

from __future__ import annotations

from collections.abc import Sequence

from workers.processes.registry import ProcessEntry
from workers.processes.slots import has_slot_beside
from workers.protocol.spec import StudySpec


def other_code(spec: StudySpec, entries: Sequence[ProcessEntry]) -> list[str]:
    """A line for each state of the objective's file that differs, with the hosts that have it.

    Args:
        spec: The study.
        entries: The live processes of the fleet.
    """
    hosts: dict[str, set[str]] = {}
    for entry in _others(spec, entries):
        hosts.setdefault(entry.other_code[spec.name], set()).add(entry.identity.host)
    consequence = (
        "its trials are left to other workers"
        if spec.code.must_match
        else "trials there run that; `code: {must_match: true}` leaves them to others"
    )
    return [
        f"{', '.join(sorted(names))}: {spec.objective} is another file there (sha256 {digest[:12]})"
        f" than the submitter's ({str(spec.code.sha256)[:12]}): {consequence}"
        for digest, names in sorted(hosts.items())
    ]


def is_without_its_code(spec: StudySpec, entries: Sequence[ProcessEntry]) -> bool:
    """Whether no slot of the study's queue may run it: all have other code, and must not."""
    others = {entry.identity for entry in _others(spec, entries)}
    return (
        spec.code.must_match
        and bool(others)
        and not has_slot_beside(spec.resources.queue, entries, others)
    )


def _others(spec: StudySpec, entries: Sequence[ProcessEntry]) -> list[ProcessEntry]:
    return [
        entry
        for entry in entries
        # one that has not looked since the study was submitted anew tells of the file before
        if entry.other_code.get(spec.name) not in {None, spec.code.sha256}
    ]
