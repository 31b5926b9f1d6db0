"""Takes up the studies that people handed in: each gets a driver, unless another one drives it.

Invariant: a driver is made only of who holds the right to drive the study; one that another one
holds is asked for again when it is free, or that one is dead.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

import redis

from orchestrator.driving.catalogue import Catalogue
from orchestrator.driving.driver import StudyDriver
from orchestrator.driving.observer import Observer
from orchestrator.driving.roster import Roster
from orchestrator.driving.sharing import Sharing
from workers.coordination.clock import lease_clock
from workers.coordination.hints import Hints
from workers.coordination.identity import ProcessIdentity
from workers.coordination.inbox import Inbox
from workers.coordination.study_lead import StudyLead, holders
from workers.logs import get_logger
from workers.protocol.errors import FleetError, InvalidInputError
from workers.settings import Settings

log = get_logger(__name__)


class Admission:
    """Makes drivers.

    Args:
        client: The fleet's Redis.
        hints: Sends the Celery messages.
        inbox: Reads what trials tell.
        settings: This orchestrator's.
        identity: Likewise.
        observer: Is shown what becomes of the studies.
        sharing: Leaves some studies to other orchestrators.
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
        sharing: Sharing,
        only: str | None,
    ) -> None:
        self._client = client
        self._hints = hints
        self._inbox = inbox
        self._settings = settings
        self._identity = identity
        self._observer = observer
        self._sharing = sharing
        self._only = only
        #: by study: the other one that drives it
        self._held: dict[str, str] = {}

    def look(self, catalogue: Catalogue, roster: Roster) -> None:
        """See which studies that another orchestrator drove are to be asked for again.

        Args:
            catalogue: How they were handed in.
            roster: Knows it of those that may be lost with Redis' data, whoever drives them.
        """
        found = holders(self._client, self._held)
        # of another host nothing is known: its rights run out
        dead = {each for each in set(self._held.values()) if ProcessIdentity.parse(each).is_dead()}
        self._held = {
            name: holder
            for name, holder in self._held.items()
            if found[name] == holder and holder not in dead
        }
        for name in self._held:
            # of one that cannot be read, what was read last is kept
            with suppress(FleetError, redis.ResponseError):
                roster.submitted[name] = catalogue.submitted(name)

    def admit(self, name: str, catalogue: Catalogue, roster: Roster) -> StudyDriver | None:
        """Begin to drive a study; None if it does not wait for that, or another one drives it.

        Args:
            name: The study.
            catalogue: How it was handed in.
            roster: Takes it up.

        Raises:
            InvalidInputError: Another orchestrator drives the one study that is to be driven here.
        """
        if name in self._held:
            return None
        if self._only is None and not catalogue.waits_for_service(name):
            return None
        roster.submitted[name] = catalogue.submitted(name)
        if self._sharing.leaves(name):
            return None
        right = StudyLead(self._client, name, self._identity, self._settings.times.lease)
        held_at = lease_clock()
        is_held = right.hold()
        self._sharing.is_taken(name, is_here=is_held)
        if not is_held:
            self._refuse(right)
            return None
        roster.drivers[name] = driver = StudyDriver(
            self._client, self._hints, self._settings, self._inbox, right, held_at, self._observer
        )
        return driver

    def forget_others(self, studies: Collection[str]) -> None:
        """Keep nothing but of some studies."""
        self._held = {name: holder for name, holder in self._held.items() if name in studies}

    def _refuse(self, right: StudyLead) -> None:
        holder = right.holder()
        if self._only:
            raise InvalidInputError(
                f"study {right.study!r} is driven by another orchestrator, {holder};"
                " stop that one, or watch the study with `trialfleet watch`"
            )
        if holder is not None:  # else it was given back just now
            self._held[right.study] = str(holder)
            log.info("study_not_driven", study=right.study, driven_by=str(holder))
