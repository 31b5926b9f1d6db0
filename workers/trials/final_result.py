"""The result of an attempt that ends its trial: kept until Redis has taken it.

Invariant: it survives this process and a Redis that is away: it lies in the outbox before it is
committed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis

from workers.coordination.identity import ProcessIdentity
from workers.disk.outbox import Outbox, OutboxEntry
from workers.logs import get_logger
from workers.protocol.events import Cause
from workers.trials.held_lease import HeldLease

log = get_logger(__name__)


class FinalResult:
    """A result on its way from an attempt to Redis.

    Args:
        outbox: Where it lies until it is committed.
        entry: What lies there.
        held: The attempt's lease.
    """

    def __init__(self, outbox: Outbox, entry: OutboxEntry, held: HeldLease) -> None:
        self._outbox = outbox
        self._entry = entry
        self._held = held
        #: whether it was brought to disk, or that could not be done
        self._is_on_disk = False

    def write(self) -> None:
        """Have it survive this process, and a Redis that is away."""
        with _disk_may_be_full():
            self._outbox.write(self._entry)

    def commit(self, cause: Cause | None, freed: ProcessIdentity | None) -> str:
        """Have Redis take it, as what ended the attempt: OK, DUP or LOST.

        Args:
            cause: What is said of the end.
            freed: The process whose record names no trial from then on.

        Raises:
            redis.RedisError: Redis is away; the result survives this host, too.
        """
        held, entry = self._held, self._entry
        seconds = held.first_step_seconds
        try:
            return held.leases.commit(
                held.number, held.token, entry.state, entry.result, cause, seconds, freed
            )
        except redis.RedisError:
            if not self._is_on_disk:  # it may take long until Redis is back
                self._is_on_disk = True
                with _disk_may_be_full():
                    self._outbox.bring_to_disk(entry)
            raise

    def commit_late(self) -> str:
        """The same, after the lease may have run out."""
        entry = self._entry
        return self._held.leases.commit(entry.number, entry.token, entry.state, entry.result)

    def settle(self, status: str) -> None:
        """See to its files and to the outbox by what Redis answered."""
        self._outbox.settle(self._entry, status, self._held.leases)


@contextmanager
def _disk_may_be_full() -> Iterator[None]:
    """Say that a result is not in the outbox, and go on: Redis may take it."""
    try:
        yield
    except OSError as problem:
        log.warning("outbox_not_written", error=str(problem), hint="make room on the disk")
