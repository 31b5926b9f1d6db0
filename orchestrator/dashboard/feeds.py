"""The studies that somebody looks at: a few at once, each read once for all pages that show it.

Invariant: a study is held for as long as a page follows it, and its revisions rise also where it
is read anew; of those that nobody follows, so many at most, which were looked at last.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from orchestrator.dashboard.fleet_document import fleet_document
from orchestrator.dashboard.study_feed import StudyFeed
from workers.coordination.kept_connection import KeptConnection
from workers.coordination.rights import Role
from workers.settings import Settings

#: Studies that are held though no page follows them: a long one takes some tens of megabytes.
MAX_FEEDS: Final = 4

#: A look that another page had so lately serves the next one, too.
_FRESH_SECONDS: Final = 0.4


class _Shared:
    """A look that pages share."""

    def __init__(self, look: Callable[[], Any]) -> None:
        self._look, self._looking = look, threading.Lock()
        self._found: Any = None
        self._looked_at = float("-inf")

    def found(self) -> Any:
        """What it finds now, or found a moment ago."""
        with self._looking:
            if time.monotonic() - self._looked_at > _FRESH_SECONDS:
                self._found = self._look()
                self._looked_at = time.monotonic()
            return self._found


class Feeds:
    """What pages read; its methods block, and are called by threads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.connection = KeptConnection.of(settings, Role.VIEWER)
        self._fleet = _Shared(lambda: fleet_document(settings, self.connection))
        self._held: OrderedDict[str, tuple[StudyFeed, _Shared]] = OrderedDict()
        self._followed = Counter[str]()
        self._holding = threading.Lock()

    def fleet(self) -> dict[str, Any]:
        """The fleet now."""
        found: dict[str, Any] = self._fleet.found()
        return found

    def study(self, name: str) -> StudyFeed:
        """One study.

        Raises:
            StudyNotKnownError: No study can have this name.
        """
        return self._entry(name)[0]

    def looked_at(self, name: str) -> StudyFeed:
        """One study, after a look at what is new."""
        feed, shared = self._entry(name)
        shared.found()
        return feed

    @contextmanager
    def following(self, name: str) -> Iterator[None]:
        """Hold a study for as long as this lasts, however many others are looked at."""
        with self._holding:
            self._followed[name] += 1
        try:
            yield
        finally:
            with self._holding:
                self._followed -= Counter([name])
                self._make_room()

    def drop(self, name: str) -> None:
        """Hold a study no more: there is none of this name."""
        with self._holding:
            self._held.pop(name, None)

    def _entry(self, name: str) -> tuple[StudyFeed, _Shared]:
        with self._holding:
            if name not in self._held:
                feed = StudyFeed(name, self.settings)
                self._held[name] = feed, _Shared(feed.look)
            self._held.move_to_end(name)
            found = self._held[name]
            self._make_room()
            return found

    def _make_room(self) -> None:
        """Hold no more studies that nobody follows than there is room for."""
        idle = [name for name in self._held if name not in self._followed]
        for name in idle[: max(0, len(idle) - MAX_FEEDS)]:
            del self._held[name]
