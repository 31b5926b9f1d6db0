"""Every interval of the lease protocol, and the one factor that scales them all.

The clocks that these intervals are measured on are in `coordination/clock.py`.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Times(BaseModel):
    """Every interval of the lease protocol, in seconds, scaled by one setting.

    The ratios are what matters: the holder falls silent (`holder`) before its lease ends
    (`lease`), and nobody takes over before `lease + grace`.
    """

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    beat: float = 10.0
    """Between two renewals of a lease or a process record."""
    lease: float = 45.0
    """How long a grant lasts on the server's clock."""
    holder: float = 40.0
    """How long the holder trusts its last good renewal, counted from when it was *sent*."""
    grace: float = 5.0
    """What the reaper waits beyond a lease's end."""
    sweep: float = 5.0
    """Between two looks for expired leases."""
    reconcile: float = 60.0
    """After which a queued trial is announced again."""
    backoff: float = 2.0
    """Before a failed trial may be claimed again; doubled with each failure, up to 64 times."""
    cancel_grace: float = 30.0
    """What an objective has from hearing that its study is cancelled, or paused at once, to its
    end; then its session is ended."""
    verdict: float = 5.0
    """How long `should_prune` waits for the orchestrator before it goes on training."""

    def scaled(self, factor: float) -> Times:
        """All intervals, multiplied by `factor`."""
        return Times(**{name: value * factor for name, value in self})
