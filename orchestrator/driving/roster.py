"""The studies that this orchestrator drives: who drives each, how it was handed in, what is shown.

Invariant: a study has one driver at most, and none is begun before the storage of the last one is
closed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final

import redis

from orchestrator.driving.driver import StudyDriver
from orchestrator.driving.endings import Endings
from orchestrator.status import StudyStatus
from workers.coordination.submitted import Submitted
from workers.logs import get_logger

log = get_logger(__name__)

#: How long the turns that are under way at the end are waited for.
_END_SECONDS: Final = 10.0


class Roster:
    """Drivers by their studies.

    Args:
        endings: Of those that drive no more.
        on_status: Called with each new status.
    """

    def __init__(self, endings: Endings, on_status: Callable[[StudyStatus], None]) -> None:
        self.drivers: dict[str, StudyDriver] = {}
        #: the studies that are not over, as Redis had them: it may lose its data
        self.submitted: dict[str, Submitted] = {}
        self.endings = endings
        self._on_status = on_status
        #: the statuses that were last shown
        self._told: dict[str, StudyStatus] = {}

    def __contains__(self, study: object) -> bool:
        """Whether a study is driven, or something of this orchestrator may still write of it."""
        return study in self.drivers or study in self.endings

    def tell(self, driver: StudyDriver) -> None:
        """Show a status that nobody was shown yet."""
        status = driver.shown.status
        if status is not None and status is not self._told.get(driver.name):
            self._told[driver.name] = status
            self._on_status(status)

    def standing(self) -> list[tuple[StudyStatus, str]]:
        """How the studies stand that were opened, each with its queue."""
        return [
            (driver.shown.status, driver.queue)
            for driver in self.drivers.values()
            if driver.shown.status is not None
        ]

    def leave(self, name: str) -> None:
        """Write down what is to be known of a study, and drive it no more."""
        driver = self.drivers.pop(name)
        self.submitted.pop(name, None)
        self._told.pop(name, None)
        self.endings.begin(driver, writes=True)
        state = None if driver.shown.status is None else driver.shown.status.state.value
        log.info("study_left", study=name, state=state)

    def abandon(self, name: str) -> None:
        """Drop a study whose storage may not be written any more."""
        driver = self.drivers.pop(name, None)
        if driver is not None:
            self.endings.begin(driver, writes=False)

    def leave_to_another(self, name: str) -> None:
        """Write nothing more of a study: another orchestrator has taken it over."""
        log.error("study_taken_over", study=name)
        self.abandon(name)

    def leave_all(self, renew_after: float) -> None:
        """Leave each, and wait until all is closed, but not for ever: what hangs is not lost.

        Args:
            renew_after: Seconds after which the right to one that is not closed is renewed.
        """
        for name in list(self.drivers):
            self.leave(name)
        deadline = time.monotonic() + _END_SECONDS
        while (left := self.endings.unfinished()) and time.monotonic() < deadline:
            self.endings.look()
            with suppress(redis.RedisError):  # a later one may do
                self.endings.keep_rights(renew_after)
            time.sleep(0.02)
        for driver in left:
            log.error("study_left_in_the_midst", study=driver.name, doing=driver.doing)

    def forget_others(self, studies: Collection[str], ended: Collection[str]) -> None:
        """Show nothing again but of some studies, and have some that have ended not come back."""
        self._told = {name: status for name, status in self._told.items() if name in studies}
        for name in ended:
            self.submitted.pop(name, None)
