"""All that is known of a study's events, or the fleet's: the file on this host, and what is news.

Invariant: each event comes once, and in order, whichever of the two has it; one that cannot be read
is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import redis

from orchestrator.storage.event_file import EventFile, Mark, events_file
from workers.coordination.clock import server_time_ms
from workers.coordination.event_stream import BEGINNING, EventStream
from workers.protocol.events import Event, EventKind, decode, place_of

#: What a line has in it that tells of an orchestrator that began.
_DRIVEN: Final = f'"kind":"{EventKind.DRIVEN}"'.encode()


@dataclass
class EventHistory:
    """Reads the events of one study, or of the fleet; to be read again for what came since.

    Args:
        file: Of this host; on others than the orchestrator's there is none.
        stream: None where Redis does not answer.
        study: Named in each event.
        trial: Of which alone events are read.
    """

    file: EventFile
    stream: EventStream | None
    study: str | None = None
    trial: int | None = None
    _place: str = BEGINNING
    _generation: str | None = field(default=None, init=False)
    _first: tuple[int, int] = field(default=(0, 0), init=False)
    _mark: Mark = field(default_factory=Mark, init=False)

    @classmethod
    def of_study(cls, client: redis.Redis | None, home: Path, name: str) -> Self:
        """All of one study's events that can be read from here."""
        stream = None if client is None else EventStream(client, name)
        return cls(EventFile(events_file(home, name)), stream, name)

    @property
    def now(self) -> float:
        """Until when it tells, in seconds since 1970; without Redis, until the last event read."""
        return (
            place_of(self._place)[0] / 1000
            if self.stream is None
            else server_time_ms(self.stream.client) / 1000
        )

    def read(self) -> Iterator[Event]:
        """What was told since the last time: at first, all of the study's latest generation."""
        if not self._mark.inode:
            self._pass_over_earlier_generations()
        yield from self._take(self.file.lines(self._mark, self._needles()))
        if self.stream is not None:
            for batch in self.stream.after(self._place):
                yield from self._take(told.line.encode() for told in batch)

    def _pass_over_earlier_generations(self) -> None:
        """Begin behind what the file tells of earlier studies of the name."""
        generation = None
        for line in self.file.lines(holding=[_DRIVEN]):
            if _DRIVEN in line and (event := decode(line)) is not None:
                if generation is not None and event.generation != generation:
                    self._first = event.place
                generation = event.generation

    def _needles(self) -> list[bytes]:
        """What lines have in them that are read; of a study of many trials, few blocks have it."""
        return [] if self.trial is None else [b'"trial":%d' % self.trial]

    def _take(self, lines: Iterator[bytes]) -> Iterator[Event]:
        # no line is parsed for nothing: a study of many trials has many
        needles = self._needles()
        for line in lines:
            if any(each not in line for each in needles):
                continue
            event = decode(line, study=self.study, generation=self._generation)
            # beside a rotation, or in a stream of a Redis that was taken back, some come again
            if event is None or event.place <= place_of(self._place) or event.place < self._first:
                continue
            self._place, self._generation = event.id, event.generation
            yield event
