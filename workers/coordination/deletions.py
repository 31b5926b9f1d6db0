"""Studies that are being deleted, and those that were: each host removes what it holds of them.

Invariant: a deletion that was begun stays begun until nothing of the study is left in Redis.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import redis

from workers.coordination import keys
from workers.coordination.clock import server_time_ms
from workers.coordination.packages import Packages
from workers.coordination.studies import Studies
from workers.protocol.errors import InvalidInputError, StudyNotKnownError
from workers.protocol.states import Wish

#: For how long hosts that are away may come back and remove what they hold: 30 days.
_KEPT_MS: Final = 30 * 24 * 3600 * 1000


@dataclass(frozen=True)
class Deletions:
    """The deletions of the fleet on a Redis."""

    client: redis.Redis

    def begin(self, study: str) -> None:
        """Have a study deleted: nothing of it is begun any more, and what runs is cancelled."""
        self.client.sadd(keys.DELETING, study)
        with suppress(StudyNotKnownError):  # where its storage alone has it
            Studies(self.client).want(study, Wish.CANCEL)

    def begun(self) -> list[str]:
        """The studies whose deletion was begun, and is not done."""
        return sorted(self.client.smembers(keys.DELETING))

    def is_begun(self, study: str) -> bool:
        """Whether the deletion of a study was begun, and is not done."""
        return bool(self.client.sismember(keys.DELETING, study))

    def finish(self, study: str, check: Callable[[], None] = lambda: None) -> None:
        """Drop all that Redis holds of a study; its results are gone. Orchestrator only.

        Args:
            study: Its name.
            check: Raises, before each step, if another study may have the name by now.
        """
        now_ms = server_time_ms(self.client)
        check()
        Studies(self.client).forget(study)
        self._drop_package(study)
        check()
        pipeline = self.client.pipeline()
        pipeline.zremrangebyscore(keys.DELETED, 0, now_ms - _KEPT_MS)
        pipeline.zadd(keys.DELETED, {study: now_ms})
        pipeline.srem(keys.STUDIES, study)
        pipeline.srem(keys.OVER, study)
        # events once more: until here, people could say what they want of it
        pipeline.delete(keys.study(study), keys.orders(study), keys.events(study))
        pipeline.srem(keys.DELETING, study)  # last: until here it is begun anew
        pipeline.execute()

    def _drop_package(self, study: str) -> None:
        """Drop the code that travelled with a study, unless another one ships the same."""
        with suppress(InvalidInputError):  # one that nobody can read names none
            package = Studies(self.client).spec(study).code.package
            if package is not None:
                Packages(self.client).drop(study, package)

    def done(self) -> list[str]:
        """The studies that were deleted, and of which no new one has the name."""
        deleted = set(self.client.zrangebyscore(keys.DELETED, "-inf", "+inf"))
        return sorted(deleted - set(Studies(self.client).names())) if deleted else []

    def revoke(self, study: str) -> None:
        """Have hosts keep what they hold under a name: a new study has it."""
        self.client.zrem(keys.DELETED, study)
