"""How things stand around a study, as the loop over all of them sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from workers.coordination.submitted import Submitted
from workers.processes.registry import ProcessEntry
from workers.protocol.states import Wish


@dataclass(frozen=True)
class Surroundings:
    """How things stand around a study."""

    submitted: Submitted | None = None
    """The study, as it stands in Redis."""
    slots: int = 0
    """Pool processes that take trials from its queue."""
    put_aside: tuple[str, ...] = ()
    """Those that take none, each with the reason."""
    processes: Mapping[str, ProcessEntry] = field(default_factory=dict, compare=False)
    """Those that run trials, by identity."""

    @property
    def wish(self) -> Wish:
        """What people want of it."""
        return Wish.RUN if self.submitted is None else self.submitted.wish
