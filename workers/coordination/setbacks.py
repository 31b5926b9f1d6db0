"""What could not be done now: said once, and tried again later and later.

Invariant: one thing that fails holds up no other.
"""

from __future__ import annotations

from typing import Final

from workers.coordination.clock import lease_clock
from workers.logs import get_logger
from workers.protocol.plain import describe_error

log = get_logger(__name__)

#: A setback is tried again after this many times the first pause, at the most.
_MOST: Final = 64


class Setbacks:
    """Things by name that failed, each with the time until which it is left.

    Args:
        pause_seconds: How long a thing is left after its first failure; doubled with each.
    """

    def __init__(self, pause_seconds: float) -> None:
        self._pause_seconds = pause_seconds
        self._counts: dict[str, int] = {}
        self._until: dict[str, float] = {}

    def is_due(self, name: str) -> bool:
        """Whether a thing may be tried now."""
        return lease_clock() >= self._until.get(name, 0.0)

    def failed(self, name: str, event: str, error: object) -> None:
        """Leave a thing for a while; its first failure is logged under `event`."""
        count = self._counts.get(name, 0)
        if count == 0:
            text = describe_error(error, 500) if isinstance(error, BaseException) else str(error)
            log.warning(event, name=name[:200], error=text, hint="it is left, and tried again")
        self._counts[name] = count + 1
        self._until[name] = lease_clock() + self._pause_seconds * min(2**count, _MOST)

    def done(self, name: str) -> None:
        """Forget a thing that went well, or is gone."""
        self._counts.pop(name, None)
        self._until.pop(name, None)
