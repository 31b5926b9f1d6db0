"""Takes up the studies that people handed in: each gets a driver, unless another one drives it.

Invariant: a driver is made only of who holds the right to drive the study; one that is refused is
asked for again now and then.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Final

import redis

from orchestrator.driving.catalogue import Catalogue
from orchestrator.driving.driver import StudyDriver
from orchestrator.driving.observer import Observer
from orchestrator.driving.roster import Roster
from workers.coordination.clock import lease_clock
from workers.coordination.hints import Hints
from workers.coordination.identity import ProcessIdentity
from workers.coordination.inbox import Inbox
from workers.coordination.study_lead import StudyLead
from workers.logs import get_logger
from workers.protocol.errors import InvalidInputError
from workers.settings import Settings

log = get_logger(__name__)

#: Between two attempts to drive a study that another orchestrator holds.
_RETRY_SECONDS: Final = 5.0


class Admission:
    """Makes drivers.

    Args:
        client: The fleet's Redis.
        hints: Sends the Celery messages.
        inbox: Reads what trials tell.
        settings: This orchestrator's.
        identity: Likewise.
        observer: Is shown what becomes of the studies.
        only: The one study to be driven; by default all that wait for it.
    """

    def __init__(
        self,
        client: redis.Redis,
        hints: Hints,
        inbox: Inbox,
        settings: Settings,
        identity: ProcessIdentity,
        observer: Observer,
        only: str | None,
    ) -> None:
        self._client = client
        self._hints = hints
        self._inbox = inbox
        self._settings = settings
        self._identity = identity
        self._observer = observer
        self._only = only
        #: by study: when another one was found to drive it
        self._refused_at: dict[str, float] = {}

    def admit(self, name: str, catalogue: Catalogue, roster: Roster) -> StudyDriver | None:
        """Begin to drive a study; None if it does not wait for that, or another one drives it.

        Args:
            name: The study.
            catalogue: How it was handed in.
            roster: Takes it up.

        Raises:
            InvalidInputError: Another orchestrator drives the one study that is to be driven here.
        """
        if time.monotonic() - self._refused_at.get(name, -1e9) < _RETRY_SECONDS:
            return None
        if self._only is None and not catalogue.waits_for_service(name):
            return None
        right = StudyLead(self._client, name, self._identity, self._settings.times.lease)
        roster.submitted[name] = catalogue.submitted(name)
        held_at = lease_clock()
        if not right.hold():
            self._refuse(right)
            return None
        roster.drivers[name] = driver = StudyDriver(
            self._client, self._hints, self._settings, self._inbox, right, held_at, self._observer
        )
        return driver

    def forget_others(self, studies: Collection[str]) -> None:
        """Keep nothing but of some studies."""
        self._refused_at = {name: at for name, at in self._refused_at.items() if name in studies}

    def _refuse(self, right: StudyLead) -> None:
        refusal = (
            f"study {right.study!r} is driven by another orchestrator, {right.holder()};"
            " stop that one, or watch the study with `trialfleet watch`"
        )
        if self._only:
            raise InvalidInputError(refusal)
        self._refused_at[right.study] = time.monotonic()
        log.warning("study_not_driven", study=right.study, error=refusal)
