"""The inbox streams, read as a consumer group: what is not acknowledged comes back.

Invariant: an entry is deleted only once it is acknowledged, and that only once the storage has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

import redis

from workers.coordination import keys
from workers.protocol.messages import BrokenEntry, InboxEntry, read_entry
from workers.protocol.plain import plain_text

_GROUP: Final = "orchestrator"

#: How many entries that were set aside are kept for people, and how long after the last: 30 days.
KEEP_SET_ASIDE: Final = 100
KEEP_SET_ASIDE_MS: Final = 30 * 24 * 3600 * 1000

#: How much of a field is kept of an entry that was set aside.
_KEPT_CHARACTERS: Final = 2000

Entry: TypeAlias = InboxEntry | BrokenEntry


class SetAside(NamedTuple):
    """An entry that could not be taken in, and why."""

    id: str
    reason: str


@dataclass
class Inbox:
    """Reads the inboxes of some studies under one consumer name."""

    client: redis.Redis
    consumer: str

    def join(self, study: str) -> list[Entry]:
        """Start to read a study; returns what any orchestrator before had not acknowledged."""
        self._make_group(study)
        entries = self.take_back(study)
        self._forget_others(study)
        return entries

    def take_back(self, study: str, idle_ms: int = 0) -> list[Entry]:
        """What was read and never acknowledged, by whomever.

        Args:
            study: One that somebody has joined.
            idle_ms: Leave what was read since: whoever read it may be at it. What Redis gave out
                with an answer that was lost is not among what the next read gives.
        """
        entries: list[Entry] = []
        start = "0-0"
        while True:
            start, claimed, *_ = self.client.xautoclaim(
                keys.inbox(study), _GROUP, self.consumer, idle_ms, start_id=start, count=500
            )
            entries += _entries(claimed)
            if start == "0-0":
                return entries

    def _forget_others(self, study: str) -> None:
        """Drop the consumers of orchestrators before; what they had read is this one's now."""
        for found in self.client.xinfo_consumers(keys.inbox(study), _GROUP):
            if found["name"] != self.consumer and not found["pending"]:
                self.client.xgroup_delconsumer(keys.inbox(study), _GROUP, found["name"])

    def read(self, studies: Sequence[str], block_ms: int) -> list[tuple[str, Entry]]:
        """New entries of the studies, each with its study; waits at most `block_ms` for one."""
        names = {keys.inbox(study): study for study in studies}
        try:
            answer: Any = self.client.xreadgroup(
                _GROUP, self.consumer, dict.fromkeys(names, ">"), count=500, block=block_ms
            )
        except redis.ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            # Redis lost the end of its file, and the group with it; or another orchestrator has
            # deleted one of them
            for study in studies:
                if self.client.exists(keys.study(study)):
                    self._make_group(study)
            return []
        if not answer:
            return []
        # of the few that told something, in the order in which they were asked for
        by_stream = answer.items() if isinstance(answer, dict) else answer
        return [
            (names[stream], entry)
            for stream, found in by_stream
            for entry in _entries(_flat(found))
        ]

    def _make_group(self, study: str) -> None:
        try:
            self.client.xgroup_create(keys.inbox(study), _GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):  # it exists
                raise

    def is_empty(self, study: str) -> bool:
        """Whether nothing waits, neither unread nor unacknowledged."""
        return not self.client.xlen(keys.inbox(study))

    def acknowledge(self, study: str, ids: Iterable[str]) -> None:
        """Drop entries for good."""
        wanted = list(ids)
        if not wanted:
            return
        pipeline = self.client.pipeline()
        pipeline.xack(keys.inbox(study), _GROUP, *wanted)
        pipeline.xdel(keys.inbox(study), *wanted)
        pipeline.execute()


def are_ends(entries: Iterable[Entry]) -> bool:
    """Whether some entries all tell how trials ended: whoever told it waits for no answer."""
    kinds = {entry.kind if isinstance(entry, InboxEntry) else None for entry in entries}
    return kinds == {"terminal"}


def set_aside(client: redis.Redis, study: str, entry: Entry, reason: str) -> None:
    """Keep an entry that cannot be taken in where people can look at it; not acknowledged yet."""
    fields = entry.fields if isinstance(entry, BrokenEntry) else entry.model_dump(mode="json")
    keep_reason(client, study, SetAside(entry.id, reason), fields)


def keep_reason(
    client: redis.Redis, study: str, aside: SetAside, fields: Mapping[str, Any] | None = None
) -> None:
    """Keep what could not be taken in of a study: its reason, and the fields that it had."""
    kept = {name: plain_text(value, _KEPT_CHARACTERS) for name, value in (fields or {}).items()}
    key = keys.set_aside(study)
    pipeline = client.pipeline()
    pipeline.lpush(key, json.dumps({"id": aside.id, "reason": aside.reason, "fields": kept}))
    pipeline.ltrim(key, 0, KEEP_SET_ASIDE - 1)
    pipeline.pexpire(key, KEEP_SET_ASIDE_MS)
    pipeline.execute()


def entries_set_aside(
    client: redis.Redis, study: str, count: int = KEEP_SET_ASIDE
) -> list[SetAside]:
    """What was set aside of a study, the latest first."""
    found = [json.loads(text) for text in client.lrange(keys.set_aside(study), 0, count - 1)]
    return [SetAside(each["id"], each["reason"]) for each in found]


def _flat(batches: list[Any]) -> list[Any]:
    """RESP3 wraps the entries of a stream in one more list."""
    return batches[0] if batches and isinstance(batches[0], list) else batches


def _entries(raw: Iterable[Any]) -> list[Entry]:
    return [read_entry(entry_id, fields) for entry_id, fields in raw if fields]
