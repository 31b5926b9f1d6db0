"""The slots of a fleet: which pool processes take trials from a queue, and which refuse to.

Invariant: a slot whose process is being replaced counts: it takes trials in a moment.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from workers.coordination.identity import ProcessIdentity
from workers.processes.registry import ProcessEntry
from workers.protocol.states import ProcessKind


def num_slots(queue: str, entries: Sequence[ProcessEntry]) -> int:
    """How many pool processes take trials from a queue."""
    slots = sum(main.slots for main in _readers(queue, entries))
    return slots - len(refusing_slots(queue, entries))


def refusing_slots(queue: str, entries: Sequence[ProcessEntry]) -> list[ProcessEntry]:
    """The pool processes that read a queue and take no trials."""
    return [
        slot
        for main in _readers(queue, entries)
        for slot in _slots_of(main, entries)
        if slot.aside is not None
    ]


def has_slot_elsewhere(
    queue: str, entries: Sequence[ProcessEntry], devices: Collection[str]
) -> bool:
    """Whether a slot takes trials from a queue on another device than some, or is starting."""
    return _has_slot(queue, entries, lambda slot: slot.device not in devices)


def has_slot_beside(
    queue: str, entries: Sequence[ProcessEntry], processes: Collection[ProcessIdentity]
) -> bool:
    """Whether a slot takes trials from a queue that is none of some processes, or is starting.

    Workers of one host may share a device, and differ in what they take.
    """
    return _has_slot(queue, entries, lambda slot: slot.identity not in processes)


def _has_slot(
    queue: str, entries: Sequence[ProcessEntry], counts: Callable[[ProcessEntry], bool]
) -> bool:
    for main in _readers(queue, entries):
        slots = _slots_of(main, entries)
        if len(slots) < main.slots:
            return True
        if any(slot.aside is None and counts(slot) for slot in slots):
            return True
    return False


def _readers(queue: str, entries: Sequence[ProcessEntry]) -> list[ProcessEntry]:
    """The main processes of the workers that take trials from a queue."""
    return [
        entry
        for entry in entries
        if entry.kind is ProcessKind.MAIN and queue in entry.queues and not entry.is_draining
    ]


def _slots_of(main: ProcessEntry, entries: Sequence[ProcessEntry]) -> list[ProcessEntry]:
    return [
        entry
        for entry in entries
        if entry.kind is ProcessKind.TRIAL
        and entry.parent == main.identity.pid
        and entry.identity.host == main.identity.host
    ]
