"""Files a study's events for good, and tells those that its orchestrator alone knows.

Invariant: it fails for itself alone: a disk that takes no events holds up no study, and what was
not filed is filed later, as long as Redis has it.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import redis

from orchestrator.driving.observer import NoObserver, Observer
from orchestrator.status import StudyStatus
from orchestrator.storage.event_file import EventFile, events_file
from workers.coordination.event_stream import EventStream
from workers.logs import get_logger
from workers.protocol.events import EventKind, brief
from workers.protocol.states import OVER_STATES

log = get_logger(__name__)

#: In the place of a study's name: what is done for the fleet's own.
FLEET: Final = "(the fleet)"

#: Between two looks at what is new: a look is a round trip, for however many events.
_LOOK_SECONDS: Final = 1.0


class EventFiling:
    """The events of one study that is driven, or, without one, of the fleet's processes.

    Args:
        client: The fleet's Redis.
        home: The orchestrator's.
        study: The study's name.
        observer: Is shown each event, when it is filed.
    """

    def __init__(
        self,
        client: redis.Redis,
        home: Path,
        study: str | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._stream = EventStream(client, study)
        self._file = EventFile(events_file(home, study))
        self._study = study
        self._observer = observer or NoObserver()
        self._state: str | None = None
        self._looked_at = -_LOOK_SECONDS
        self._trouble: str | None = None
        self._is_ending = False

    def begin(self, process: object, generation: str, state: str | None) -> None:
        """Tell that an orchestrator drives the study.

        Args:
            process: Which one.
            generation: The study's.
            state: As it was published last, by whomever.
        """
        self._stream.tell_if_known(EventKind.DRIVEN, process=str(process), generation=generation)
        self._state = state
        if state in OVER_STATES:  # and perhaps still is: what is news of it is not to stay for that
            self._is_ending = True
            self._stream.expire()
        else:
            self._stream.keep()

    def turn(self, status: StudyStatus) -> None:
        """Tell if the study is in another state than before; to be called before it is shown."""
        if status.state.value != self._state:
            ended_by = brief(status.ended_by)
            told = {"state": status.state.value, "detail": ended_by}
            self._stream.tell_if_known(EventKind.TURNED, **told)
            self._state = status.state.value

    def file(self) -> None:
        """File what is new, if it is time for that."""
        if time.monotonic() - self._looked_at >= _LOOK_SECONDS:
            self.file_all()

    def file_all(self) -> None:
        """File what is new."""
        self._looked_at = time.monotonic()
        try:
            for told in self._stream.after(self._file.place()):
                if not self._file.add(told):
                    return  # another orchestrator files them
                self._observer.saw_events(self._study, told)
        except OSError as error:
            if str(error) != self._trouble:
                log.warning("events_not_filed", study=self._study, error=str(error))
            self._trouble = str(error)
        else:
            self._trouble = None

    def end(self) -> None:
        """File all, and have what is news go some time after; before the study is shown as over.

        Once it is, nobody may come to do that.
        """
        self.file_all()
        self._is_ending = True
        self._stream.expire()

    def go_on(self) -> None:
        """Keep what is news, if it was to go: the study is not over."""
        if self._is_ending:
            self._stream.keep()
            self._is_ending = False

    def close(self) -> None:
        """File the last."""
        with suppress(redis.RedisError):  # whoever drives it next files them
            self.file_all()
