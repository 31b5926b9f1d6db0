"""The slots of a fleet by queue, as the registry had them at one moment."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from orchestrator.driving.surroundings import Surroundings
from workers.coordination.submitted import Submitted
from workers.processes.registry import ProcessEntry
from workers.processes.slots import num_slots, refusing_slots
from workers.protocol.states import ProcessKind


class Queues:
    """Counts slots, once for each queue.

    Args:
        processes: All of the fleet.
    """

    def __init__(self, processes: Sequence[ProcessEntry] = ()) -> None:
        self._processes = processes
        self._slots: dict[str, int] = {}
        self._put_aside: dict[str, tuple[str, ...]] = {}

    def slots(self, queue: str) -> int:
        """How many pool processes take trials from a queue."""
        if queue not in self._slots:
            self._slots[queue] = num_slots(queue, self._processes)
        return self._slots[queue]

    def put_aside(self, queue: str) -> tuple[str, ...]:
        """The slots of a queue that take no trials, each with the reason."""
        if queue not in self._put_aside:
            self._put_aside[queue] = tuple(
                f"{slot.gpu} of {slot.identity.host}: {slot.aside}"
                for slot in refusing_slots(queue, self._processes)
            )
        return self._put_aside[queue]

    def around(self, submitted: Submitted) -> Surroundings:
        """How things stand around a study, by how it was handed in."""
        queue = submitted.spec.resources.queue
        return Surroundings(
            submitted, self.slots(queue), self.put_aside(queue), self.trial_processes
        )

    @cached_property
    def trial_processes(self) -> dict[str, ProcessEntry]:
        """Those that run trials, by identity."""
        return {
            str(each.identity): each for each in self._processes if each.kind is ProcessKind.TRIAL
        }
