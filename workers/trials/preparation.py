"""What an attempt does between its steps, such as reading data: said now and then, and shown.

Invariant: what is shown is taken back when it is over.
"""

from __future__ import annotations

from collections.abc import Callable

from workers.coordination.clock import lease_clock
from workers.logs import get_logger

log = get_logger(__name__)


class Preparation:
    """Says how far work has come, no more often than somebody reads it.

    Args:
        show: Told in one line what goes on; None when nothing does.
        interval_seconds: Between two words; what takes less is not worth any.
    """

    def __init__(
        self, show: Callable[[str | None], None] = lambda _: None, interval_seconds: float = 5.0
    ) -> None:
        self._show = show
        self._interval_seconds = interval_seconds
        self._said_at: float | None = None
        self._is_shown = False

    def tell(self, what: str, done: int, total: int) -> None:
        """Note that so much is done, of so much; of 0 where nobody knows."""
        now, said_at = lease_clock(), self._said_at  # once: another thread may end it
        if said_at is None:
            self._said_at = said_at = now
        if now - said_at < self._interval_seconds:
            return
        self._said_at = now
        self._is_shown = True
        log.debug("preparing", what=what, done=done, of=total or None)
        self._show(f"{what}: {done:,} of {total:,}" if total else f"{what}: {done:,}")

    def end(self) -> None:
        """Note that steps are made again."""
        self._said_at = None
        if self._is_shown:
            self._is_shown = False
            self._show(None)
