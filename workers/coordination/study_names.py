"""Which studies were handed in, and which of them are over."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import redis

from workers.coordination import keys
from workers.protocol.errors import StudyNotKnownError, nearest


@dataclass(frozen=True)
class StudyNames:
    """The names of the studies that this Redis knows."""

    client: redis.Redis

    def names(self) -> list[str]:
        """All studies, in alphabetical order."""
        return sorted(self.client.smembers(keys.STUDIES))

    def unfinished(self) -> list[str]:
        """The studies that are not known to be over, in alphabetical order."""
        return sorted(self.client.sdiff(keys.STUDIES, keys.OVER))

    def look_through_ended(self, cursor: int, count: int) -> int:
        """See if some of those that are known to be over go on; where to begin the next time.

        Earlier releases have a study go on without that others know.
        """
        cursor, names = self.client.sscan(keys.OVER, cursor, count=count)
        pipeline = self.client.pipeline(transaction=False)
        for name in names:
            pipeline.hget(keys.study(name), "fact:over")
        for name, over in zip(names, pipeline.execute(raise_on_error=False), strict=True):
            if over is None or over == "null":
                self.client.srem(keys.OVER, name)
        return int(cursor)

    def existing(self, names: Collection[str]) -> set[str]:
        """Those of some studies that were submitted."""
        return self._members(keys.STUDIES, names)

    def ended(self, names: Collection[str]) -> set[str]:
        """Those of some studies that are known to be over."""
        return self._members(keys.OVER, names)

    def _members(self, key: str, names: Collection[str]) -> set[str]:
        found = self.client.smismember(key, list(names)) if names else []
        return {name for name, is_there in zip(names, found, strict=True) if is_there}

    def exists(self, name: str) -> bool:
        """Whether a study was submitted under this name."""
        return bool(self.client.sismember(keys.STUDIES, name))

    def unknown(self, name: str) -> StudyNotKnownError:
        """That there is no such study, and which one may be meant."""
        names = self.names()
        known = nearest(name, names) or f"; it knows: {', '.join(names) or 'none yet'}"
        return StudyNotKnownError(f"study {name!r}: not known to this fleet{known}")
