"""Streams of events: what became of a study, or of the fleet's processes, as long as it is news.

The scripts tell most events, in the call that made them true; what only one process knows, such as
an orchestrator that begins, it tells here.

Invariant: a stream holds some ten thousand events at most, and is not trusted: what lies in it and
is no event is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import redis

from workers.coordination import keys
from workers.protocol.events import EventKind, encode, is_one_line, line_of

#: How many events a stream keeps; `NEWS` in Lua has the same.
MAX_NEWS: Final = 10_000

#: How many one read takes.
_READ_AT_ONCE: Final = 1000

#: How long the events of a study stay that is over, for people: 3 days, as its trials' records.
KEEP_ENDED_MS: Final = 3 * 24 * 3600 * 1000

#: The first place of a stream.
BEGINNING: Final = "0-0"


class Told(NamedTuple):
    """An event as it lies in a stream."""

    id: str
    text: str

    @property
    def line(self) -> str:
        """As it is written to a file."""
        return line_of(self.id, self.text)


@dataclass(frozen=True)
class EventStream:
    """The events of one study, or, without one, of the fleet's processes."""

    client: redis.Redis
    study: str | None = None

    @property
    def _key(self) -> str:
        return keys.FLEET_EVENTS if self.study is None else keys.events(self.study)

    def tell(self, kind: EventKind, **fields: str | float | None) -> None:
        """Tell an event that no script tells; with a pipeline, whenever that is carried out.

        Args:
            kind: What happened.
            fields: What tells more of it.
        """
        told = {"event": encode(kind, **fields)}
        with suppress(redis.ResponseError):  # a key that is no stream, or a Redis that is full
            self.client.xadd(self._key, told, maxlen=MAX_NEWS, approximate=True)

    def tell_if_known(self, kind: EventKind, **fields: str | float | None) -> None:
        """The same, but nothing of a study that was deleted; no pipeline answers that."""
        if self.study is None or self.client.exists(keys.study(self.study)):
            self.tell(kind, **fields)

    def after(self, place: str) -> Iterator[list[Told]]:
        """What was told after an event, in batches, to its end."""
        while True:
            found: Any = ()
            with suppress(redis.ResponseError):
                found = self.client.xrange(self._key, min=f"({place}", count=_READ_AT_ONCE)
            batch = [Told(event_id, fields.get("event", "")) for event_id, fields in found]
            if batch:
                yield [each for each in batch if is_one_line(each.text)]
            if len(batch) < _READ_AT_ONCE:
                return
            place = batch[-1].id

    def keep(self) -> None:
        """Have it stay for as long as its study is driven; orchestrator only."""
        self.client.persist(self._key)

    def expire(self) -> None:
        """Have it go some time after its study has ended; orchestrator only."""
        self.client.pexpire(self._key, KEEP_ENDED_MS)
