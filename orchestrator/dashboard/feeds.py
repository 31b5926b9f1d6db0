"""The studies that somebody looks at: a few at once, each read once for all pages that show it.

Invariant: so many studies are held in memory at most, those that were looked at last.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from orchestrator.dashboard.fleet_document import fleet_document
from orchestrator.dashboard.study_feed import StudyFeed
from workers.settings import Settings

#: Studies that are held: a long one takes some tens of megabytes.
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
        self._fleet = _Shared(lambda: fleet_document(settings))
        self._held: OrderedDict[str, tuple[StudyFeed, _Shared]] = OrderedDict()
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

    def revision(self, name: str) -> int:
        """At which revision a study is, after a look at what is new."""
        return int(self._entry(name)[1].found())

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
            while len(self._held) > MAX_FEEDS:
                self._held.popitem(last=False)
            return self._held[name]
