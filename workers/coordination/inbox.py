"""The inbox streams, read as a consumer group: what is not acknowledged comes back.

Invariant: an entry is deleted only once it is acknowledged, and that only once the storage has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import redis

from workers.coordination import keys
from workers.protocol.messages import InboxEntry

_GROUP: Final = "orchestrator"


@dataclass
class Inbox:
    """Reads the inboxes of some studies under one consumer name."""

    client: redis.Redis
    consumer: str

    def join(self, study: str) -> list[InboxEntry]:
        """Start to read a study; returns what any orchestrator before had not acknowledged."""
        self._make_group(study)
        entries: list[InboxEntry] = []
        start = "0-0"
        while True:
            start, claimed, *_ = self.client.xautoclaim(
                keys.inbox(study), _GROUP, self.consumer, min_idle_time=0, start_id=start, count=500
            )
            entries += _entries(claimed)
            if start == "0-0":
                return entries

    def read(self, studies: Sequence[str], block_ms: int) -> list[tuple[str, InboxEntry]]:
        """New entries of the studies, each with its study; waits at most `block_ms` for one."""
        streams = {keys.inbox(study): ">" for study in studies}
        try:
            answer: Any = self.client.xreadgroup(
                _GROUP, self.consumer, streams, count=500, block=block_ms
            )
        except redis.ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            # Redis lost the end of its file, and the group with it
            for study in studies:
                self._make_group(study)
            return []
        if not answer:
            return []
        by_stream = dict(answer.items() if isinstance(answer, dict) else answer)
        return [
            (study, entry)
            for study in studies
            for entry in _entries(_flat(by_stream.get(keys.inbox(study), [])))
        ]

    def _make_group(self, study: str) -> None:
        with suppress(redis.ResponseError):  # BUSYGROUP: it exists
            self.client.xgroup_create(keys.inbox(study), _GROUP, id="0", mkstream=True)

    def acknowledge(self, study: str, ids: Iterable[str]) -> None:
        """Drop entries for good."""
        wanted = list(ids)
        if not wanted:
            return
        pipeline = self.client.pipeline()
        pipeline.xack(keys.inbox(study), _GROUP, *wanted)
        pipeline.xdel(keys.inbox(study), *wanted)
        pipeline.execute()


def _flat(batches: list[Any]) -> list[Any]:
    """RESP3 wraps the entries of a stream in one more list."""
    return batches[0] if batches and isinstance(batches[0], list) else batches


def _entries(raw: Iterable[Any]) -> list[InboxEntry]:
    return [InboxEntry.from_stream(entry_id, fields) for entry_id, fields in raw if fields]
