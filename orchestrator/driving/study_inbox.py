"""What waits in a study's inbox, and what was set aside of it."""

from __future__ import annotations

import redis

from workers.coordination.inbox import (
    Entry,
    Inbox,
    SetAside,
    entries_set_aside,
    keep_reason,
    set_aside,
)


class StudyInbox:
    """The inbox of one study, beside those who read it.

    Args:
        client: The fleet's Redis.
        study: The study.
    """

    def __init__(self, client: redis.Redis, study: str) -> None:
        self._client = client
        self._study = study

    def is_empty(self) -> bool:
        """Whether nothing that the study's trials told waits to be taken in."""
        return Inbox(self._client, "").is_empty(self._study)

    def reasons_set_aside(self, count: int) -> list[str]:
        """Why entries were set aside, the latest last."""
        found = entries_set_aside(self._client, self._study, count)
        return [each.reason for each in reversed(found)]

    def keep_aside(self, entry: Entry, reason: str) -> None:
        """Set an entry aside that cannot be taken in."""
        set_aside(self._client, self._study, entry, reason)

    def keep_unreadable(self, number: int, reason: str) -> None:
        """Keep why a trial's record was written anew, for the orchestrators to come, too."""
        keep_reason(self._client, self._study, SetAside(f"record of {number}", reason))
