"""Whether this slot can be trusted with trials: its CUDA works, and its device is not put aside.

Invariant: a slot that was given a GPU never trains on the CPU, and the last device that a queue
has is not put aside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress

import redis

from workers.coordination.device_marks import ENOUGH, DeviceMarks, Victim
from workers.logs import get_logger
from workers.managers import CUDAManager
from workers.processes.registry import ProcessEntry, ProcessRecord, ProcessRegistry
from workers.processes.slots import has_slot_beside, has_slot_elsewhere
from workers.times import Times

log = get_logger(__name__)


class SlotHealth:
    """What speaks against this slot, shown in its process's record.

    Args:
        client: The fleet's Redis.
        times: The protocol's intervals.
        record: This process's entry in the registry.
        cuda: The GPU of this process, if it has one.
    """

    def __init__(
        self, client: redis.Redis, times: Times, record: ProcessRecord, cuda: CUDAManager
    ) -> None:
        self._registry = ProcessRegistry(client, times)
        self._record = record
        self._cuda = cuda
        cuda.check()
        self._marks = DeviceMarks(client, record.device)
        #: marks are made by processes that end for it: those of now were there at the start
        self._is_marked = bool(record.device) and bool(self._marks.victims() or self._marks.aside())

    def refusal(self) -> str | None:
        """Why this slot takes no trial now; None if it does.

        Raises:
            redis.RedisError: Redis is away.
        """
        reason = self._cuda.trouble
        if reason is None and self._is_marked:
            reason = self._marks.aside() or self._put_aside()
        if reason != self._record.aside:
            self._record.update(aside=reason)
            if reason is not None:
                log.error("slot_refused", device=self._record.device, reason=reason)
        return reason

    def has_other(self, queue: str, lost_on: Collection[str] = ()) -> bool:
        """Whether a queue is read on another device than this one, and than some.

        Outside a fleet, and while Redis is away, there is none.
        """
        excluded = {self._record.device, *lost_on}
        with suppress(redis.RedisError):
            entries = list(self._registry.entries()) if self._record.is_registered else []
            return has_slot_elsewhere(queue, entries, excluded)
        return False

    def has_other_than(self, queue: str, study: str, processes: Collection[str]) -> bool:
        """Whether another process than this one, and than some, takes trials of a study."""
        return self._has_other(
            queue, lambda entry: str(entry.identity) in processes or study in entry.refuses
        )

    def has_other_with_code(self, queue: str, study: str) -> bool:
        """Whether another slot has the objective that was submitted, for all that is known."""
        return self._has_other(queue, lambda entry: study in entry.other_code)

    def has_other_that_takes(self, queue: str, study: str) -> bool:
        """Whether another slot takes trials of a study, for all that is known."""
        return self._has_other(queue, lambda entry: study in entry.refuses)

    def _has_other(self, queue: str, is_left_out: Callable[[ProcessEntry], bool]) -> bool:
        entries = list(self._registry.entries()) if self._record.is_registered else []
        left_out = {entry.identity for entry in entries if is_left_out(entry)}
        return has_slot_beside(queue, entries, {self._record.identity, *left_out})

    def is_suspect(self) -> bool:
        """Whether this slot's device broke under a trial that succeeded elsewhere."""
        with suppress(redis.RedisError):
            return self._is_marked and bool(self._marks.succeeded_elsewhere())
        return False

    def note_loss(self, study: str, number: int) -> None:
        """Note that the device broke under a trial."""
        if self._record.device:
            self._marks.note(Victim(study, number))

    def note_success(self) -> None:
        """Note that a trial succeeded on the device."""
        if self._is_marked:
            self._marks.clear()
            self._is_marked = False

    def _put_aside(self) -> str | None:
        """Put the device aside, if enough speaks against it and its queues have another one."""
        proof = self._marks.succeeded_elsewhere()
        if len(proof) < ENOUGH or not any(map(self.has_other, self._queues())):
            return None
        named = ", ".join(f"{each.study} {each.number}" for each in proof)
        reason = (
            f"put aside: CUDA broke on it under trials that succeeded on other devices ({named});"
            " look at nvidia-smi -q, then restart its worker to take it back"
        )
        self._marks.put_aside(reason)
        return reason

    def _queues(self) -> list[str]:
        """What this process's worker reads."""
        return next(
            (
                entry.queues
                for entry in self._registry.entries()
                if entry.identity.host == self._record.identity.host
                and entry.identity.pid == self._record.parent
            ),
            [],
        )
