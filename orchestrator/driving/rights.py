"""Keeps the rights to drive studies, or leaves a study to the orchestrator that took it over.

Invariant: a right is renewed long before it runs out, and asked for before each write.
"""

from __future__ import annotations

from heapq import nsmallest

from orchestrator.driving.isolation import Isolation
from orchestrator.driving.roster import Roster
from workers.coordination.clock import lease_clock
from workers.coordination.study_lead import renew_all


class Rights:
    """Those of one orchestrator.

    Args:
        roster: The studies that it drives.
        isolation: Has the fault of one be no other's.
    """

    def __init__(self, roster: Roster, isolation: Isolation) -> None:
        self._roster = roster
        self._isolation = isolation

    def keep(self, older_than: float, most: int | None = None) -> None:
        """Stay the orchestrator of each study, or leave it to the one that took over.

        Args:
            older_than: Leave rights that were renewed in so many seconds. To be asked before each
                write: this process may have been stopped for any time.
            most: Of so many, the oldest; by default of all.
        """
        old = (
            (name, driver)
            for name, driver in self._roster.drivers.items()
            if driver.is_right_older(older_than)
        )
        chosen = (
            list(old) if most is None else nsmallest(most, old, key=lambda each: each[1].held_at)
        )
        now = lease_clock()
        kept = renew_all([driver.right for _, driver in chosen])
        for (name, driver), is_kept in zip(chosen, kept, strict=True):
            if is_kept:
                driver.held_at = now
                continue
            with self._isolation.alone(name, "keeping the right to drive it"):
                if not driver.keep_right(older_than):
                    self._roster.leave_to_another(name)
        self._roster.endings.keep_rights(older_than)
