"""The trials that one message hints at: run here one after the other, or handed on to other slots.

Invariant: no short trial waits here behind one that is not short, nor behind this process's end.
Those that are left when the message itself goes back, or when this process is killed, are in it.
"""

from __future__ import annotations

import threading
from collections import deque

import redis

from workers.coordination.hints import Hints
from workers.logs import get_logger
from workers.protocol.errors import UnsealedError
from workers.protocol.messages import RunTrial
from workers.protocol.seals import Seal

log = get_logger(__name__)


class HintedTrials:
    """Those of one message.

    Args:
        hint: The message.
        hints: Announces trials.
        seal: The fleet's secrets.
    """

    def __init__(self, hint: RunTrial, hints: Hints, seal: Seal) -> None:
        try:
            apart = hint.apart(seal)
        except UnsealedError:  # it is refused as it is, with its reason
            apart = [hint]
        self._left = deque(apart)
        self._hints = hints
        self._lock = threading.Lock()

    def take(self) -> RunTrial | None:
        """The next trial, which nobody else is told of; None if there is none."""
        with self._lock:
            return self._left.popleft() if self._left else None

    @property
    def are_left(self) -> bool:
        """Whether trials are left that were neither taken nor handed on."""
        return bool(self._left)

    def hand_on(self, queue: str) -> None:
        """Announce the trials that are left, each by itself; from whatever thread.

        Those that Redis does not take the message of are still left.
        """
        with self._lock:
            try:
                while self._left:
                    self._hints.pass_on(self._left[0], queue)
                    self._left.popleft()
            except redis.RedisError as error:
                log.warning("hints_not_handed_on", error=str(error), count=len(self._left))
