"""What could not be done now: said once, and tried again later and later.

Invariant: one thing that fails holds up no other.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from workers.coordination.clock import lease_clock
from workers.logs import get_logger
from workers.protocol.plain import describe_error, plain_text

log = get_logger(__name__)

#: A setback is tried again after this many times the first pause, at the most.
_MOST: Final = 64

#: How many setbacks people are told of, and how much of each.
_SHOWN: Final = 20
_SHOWN_CHARACTERS: Final = 300


@dataclass(frozen=True)
class _Setback:
    reason: str
    count: int
    until: float


class Setbacks:
    """Things by name that failed, each with the time until which it is left.

    Args:
        pause_seconds: How long a thing is left after its first failure; doubled with each.
    """

    def __init__(self, pause_seconds: float) -> None:
        self._pause_seconds = pause_seconds
        self._failed: dict[str, _Setback] = {}

    def is_due(self, name: str) -> bool:
        """Whether a thing may be tried now."""
        failed = self._failed.get(name)
        return failed is None or lease_clock() >= failed.until

    def failed(self, name: str, event: str, error: object) -> None:
        """Leave a thing for a while; its first failure is logged under `event`."""
        text = describe_error(error, 500) if isinstance(error, BaseException) else str(error)
        before = self._failed.get(name)
        count = 0 if before is None else before.count
        if before is None:
            log.warning(event, name=name[:200], error=text, hint="it is left, and tried again")
        until = lease_clock() + self._pause_seconds * min(2**count, _MOST)
        self._failed[name] = _Setback(f"{event}: {text}", count + 1, until)

    def done(self, name: str) -> None:
        """Forget a thing that went well, or is gone."""
        self._failed.pop(name, None)

    def forget_others(self, names: Collection[str]) -> None:
        """Forget all things but some: the others are gone."""
        self._failed = {name: each for name, each in self._failed.items() if name in names}

    def described(self) -> list[str]:
        """A line on each thing that is left for now."""
        found = [f"{name[:100]}: {each.reason}" for name, each in sorted(self._failed.items())]
        return [plain_text(line, _SHOWN_CHARACTERS) for line in found[:_SHOWN]]
