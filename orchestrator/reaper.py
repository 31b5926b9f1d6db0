"""The reaper: gives trials whose holder vanished back to the queue, when the lease is truly over.

Invariant: nobody is reaped for this side's own absence. After its start, after a gap in its sweeps
and after a new epoch, the reaper waits one lease, in which live holders renew.
"""

from __future__ import annotations

import time

from orchestrator.driven import DrivenStudy
from workers.logs import get_logger
from workers.times import Times

log = get_logger(__name__)


class Reaper:
    """Sweeps the leases of the studies that this orchestrator drives."""

    def __init__(self, times: Times) -> None:
        self._times = times
        self._quiet_until = time.monotonic() + times.lease
        self._swept_at = time.monotonic()

    def sweep(self, study: DrivenStudy, now_ms: int) -> None:
        """Reap the study's leases that ended more than the grace ago.

        Args:
            study: A driven study.
            now_ms: The server's clock.
        """
        for number, deadline_ms in study.leases.running().items():
            if deadline_ms + self._times.grace * 1000 > now_ms:
                continue
            ended = study.leases.reap(
                number,
                "its lease ran out: the worker or its host is gone",
                max_failures=study.spec.max_failures,
                backoff_seconds=self._times.backoff,
                grace_seconds=self._times.grace,
            )
            log.info("reaped", study=study.name, trial=number, ended=ended)
            if ended == "REQUEUED":
                record = study.leases.record(number)
                failures = 1 if record is None else record.failures
                study.send_hint(number, self._times.backoff * 2 ** (failures - 1))

    def is_due(self) -> bool:
        """Whether to sweep now; to be asked often, so that a gap is noticed."""
        now = time.monotonic()
        gap = now - self._swept_at
        if gap < self._times.sweep:
            return False
        self._swept_at = now
        if gap > self._times.lease / 2:
            log.warning("sweep_gap", seconds=round(gap, 1))
            self._quiet_until = now + self._times.lease
        return now >= self._quiet_until

    def be_patient(self) -> None:
        """Wait one lease: Redis was away, or lost its data."""
        self._quiet_until = time.monotonic() + self._times.lease
