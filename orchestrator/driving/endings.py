"""The studies that this orchestrator drives no more, until nothing of it can write of them.

What they had open is closed off the loop, after the turn that they may be at.

Invariant: the right to drive a study is given back only after its last turn has returned and its
storage is closed: until then nobody else deletes or opens it.
"""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field

import redis

from orchestrator.driving.driver import StudyDriver
from orchestrator.driving.turns import TurnPool
from workers.logs import get_logger

log = get_logger(__name__)


@dataclass
class _Ending:
    driver: StudyDriver
    writes: bool
    """Whether it may still write down what is to be known of the study."""
    ended: Future[None] | None = None
    _right: threading.Lock = field(default_factory=threading.Lock)
    """Held while the right is kept, or its release is decided."""
    _is_releasing: bool = False

    def end(self) -> None:
        try:
            if self.writes:
                self.driver.close()
            else:
                self.driver.abandon()
        except Exception:  # nothing is lost but the time since the clock was last written down
            log.exception("storage_not_closed", study=self.driver.name)
        finally:
            with self._right:
                self._is_releasing = True
            with contextlib.suppress(redis.RedisError):  # it runs out by itself
                self.driver.release()

    def keep_right(self, older_than: float) -> None:
        """Let nobody else have the study until all is closed."""
        with self._right:
            if self._is_releasing:
                return  # kept from here on, it would be nobody's for a lease
            # a right that cannot be kept is another one's by now, who opens what is not locked
            with contextlib.suppress(redis.ResponseError, ValueError):
                self.driver.keep_right(older_than, only_stay=True)


class Endings:
    """Ends drivers.

    Args:
        pool: Has the threads for it.
    """

    def __init__(self, pool: TurnPool) -> None:
        self._pool = pool
        self._endings: dict[str, _Ending] = {}

    def __contains__(self, study: object) -> bool:
        """Whether something of this orchestrator may still write of a study."""
        return study in self._endings

    def begin(self, driver: StudyDriver, *, writes: bool) -> None:
        """End a driver.

        Args:
            driver: No turn of it is begun any more.
            writes: Whether it may write down what is to be known of the study: nobody else has
                taken it over, and its storage is as it should be.
        """
        if driver.turning is not None:
            driver.turning.cancel()  # if it has not begun
        self._endings[driver.name] = _Ending(driver, writes)
        self.look()

    def look(self) -> None:
        """Go on with each as far as it can be; to be asked in each turn of the loop."""
        for name, ending in list(self._endings.items()):
            turning = ending.driver.turning
            if ending.ended is None and (turning is None or turning.done()):
                ending.ended = self._pool.submit(name, ending.end)
            elif ending.ended is not None and ending.ended.done():
                del self._endings[name]
        self._pool.relieve()

    def keep_rights(self, older_than: float) -> None:
        """Let nobody else have the studies whose last turn, or whose closing, has not returned."""
        for ending in self._endings.values():
            ending.keep_right(older_than)

    def unfinished(self) -> list[StudyDriver]:
        """Those whose last turn, or whose closing, has not returned."""
        return [ending.driver for ending in self._endings.values()]
