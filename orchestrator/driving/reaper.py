"""The reaper: gives trials whose holder vanished back to the queue, when the lease is truly over.

Invariant: nobody is reaped for this side's own absence, nor for a clock that was set. After its
start, after a gap in its sweeps (a suspend counts), after a step of the server's clock and after a
new epoch, the reaper waits one lease, in which live holders renew.
"""

from __future__ import annotations

import redis

from orchestrator.driving.driven import DrivenStudy
from workers.coordination.clock import lease_clock
from workers.logs import get_logger
from workers.times import Times

log = get_logger(__name__)


class Reaper:
    """Sweeps the leases of the studies that this orchestrator drives."""

    def __init__(self, times: Times) -> None:
        self._times = times
        self._quiet_until = lease_clock() + times.lease
        self._swept_at = lease_clock()
        self._ahead_seconds: float | None = None

    def sweep(self, study: DrivenStudy, now_ms: int) -> None:
        """Reap the study's leases that ended more than the grace ago.

        Args:
            study: A driven study.
            now_ms: The server's clock.
        """
        now = lease_clock()
        if now < self._quiet_until or now - self._swept_at > self._times.lease / 2:
            return  # asked for before Redis was away, or this host stood still
        for number, deadline_ms in study.leases.running().items():
            if deadline_ms + self._times.grace * 1000 > now_ms:
                continue
            try:
                ended = study.leases.reap(
                    number,
                    "its lease ran out: the worker or its host is gone",
                    most=study.spec.max_losses,
                    backoff_seconds=self._times.backoff,
                    grace_seconds=self._times.grace,
                )
            except redis.ResponseError:
                if study.leases.unreadable(number) is None:
                    raise
                ended = "SKIP"
            if ended == "SKIP" and study.leases.unreadable(number) is not None:
                study.check_lead()
                study.leases.drop_lease(number)  # it is written anew then
            log.info("reaped", study=study.name, trial=number, ended=ended)
            if ended == "REQUEUED":
                study.send_hint(number, study.leases.pause_seconds(number))

    def is_due(self, now_ms: int) -> bool:
        """Whether to sweep now; to be asked often, so that a gap is noticed.

        Args:
            now_ms: The server's clock.
        """
        now = lease_clock()
        self._notice_step(now_ms / 1000 - now)
        gap = now - self._swept_at
        if gap < self._times.sweep:
            return False
        self._swept_at = now
        if gap > self._times.lease / 2:
            log.warning("sweep_gap", seconds=round(gap, 1))
            self.be_patient()
        return now >= self._quiet_until

    def be_patient(self) -> None:
        """Wait one lease: Redis was away, or lost its data."""
        self._quiet_until = lease_clock() + self._times.lease

    def _notice_step(self, ahead_seconds: float) -> None:
        """Be patient where the server's clock was set: its leases ended, or seem to, all at once.

        Args:
            ahead_seconds: By how much that clock is ahead of the one that nobody sets.
        """
        before, self._ahead_seconds = self._ahead_seconds, ahead_seconds
        # a smaller one ends no lease that is renewed; a busy machine may read one clock late
        if before is not None and abs(ahead_seconds - before) > self._times.lease / 2:
            log.warning("server_clock_set", by_seconds=round(ahead_seconds - before, 1))
            self.be_patient()
