"""The share of its slots' time that a study trained, as its events tell it, while people watch.

Invariant: reading holds nobody up, and what cannot be read now is read later; the last share stays.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Final, Self

import redis

from orchestrator.storage.event_history import EventHistory
from orchestrator.views.slot_time import SlotTimes
from workers.protocol.errors import FleetError

#: Between two looks at what is new.
_LOOK_SECONDS: Final = 2.0


class TrainedShare:
    """Reads the events in a thread of its own, for as long as the `with` block runs.

    Args:
        history: The study's events.
    """

    def __init__(self, history: EventHistory) -> None:
        self._history, self._times = history, SlotTimes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="trained-share", daemon=True)
        self.value: float | None = None
        """As reports tell it; None as long as no attempt has ended."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(_LOOK_SECONDS)  # it changes nothing, and may be asking a Redis that hangs

    def look(self) -> None:
        """Take in what is new."""
        self._times.take(self._history.read())
        self.value = self._times.so_far(self._history.now).trained_share

    def _follow(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            with suppress(redis.RedisError, FleetError, OSError):
                self.look()
