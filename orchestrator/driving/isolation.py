"""What goes wrong with one study stalls that study, with a reason that is published, and no other.

Invariant: only what concerns everybody gets by: a Redis that is away or refuses whoever asks; and,
where one study alone is driven, that it cannot be opened, or fails again and again.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final

import redis

from orchestrator.driving.driver import StudyDriver
from orchestrator.driving.redis_watch import RedisWatch
from orchestrator.driving.roster import Roster
from orchestrator.driving.stalls import Stalls
from orchestrator.storage.opening import is_database_error
from workers.coordination.connection import is_general
from workers.coordination.studies import Studies
from workers.logs import get_logger, traceback_of
from workers.protocol.errors import (
    InvalidInputError,
    StorageFullError,
    StudyStalledError,
    StudyTakenOverError,
)
from workers.protocol.plain import describe_error

log = get_logger(__name__)

#: After so many failures in a row, an orchestrator of one study alone gives up.
_GIVE_UP_AFTER: Final = 3

#: How much of an error is published as the reason of a stall.
_MAX_REASON: Final = 500


@dataclass(frozen=True)
class _Refusal:
    """What was said of a study that concerns all."""

    turn: Future[None] | None
    """The turn that it was at."""
    reason: str
    before: str | None
    """Why it did not get on already."""


class Isolation:
    """Stands between each study and the others.

    Args:
        roster: The studies that are driven.
        watch: Tells a Redis that lost its data from one that holds what it should not.
        studies: Where reasons are published.
        leader: This orchestrator, as it leads studies.
        is_only: Whether there is no other study to go on with.
    """

    def __init__(
        self, roster: Roster, watch: RedisWatch, studies: Studies, leader: str, *, is_only: bool
    ) -> None:
        self.stalls = Stalls()
        self._roster = roster
        self._watch = watch
        self._studies = studies
        self._led = replace(studies, leader=leader)
        self._is_only = is_only
        #: by study: what was last said of all, until it is over
        self._refusals: dict[str, _Refusal] = {}

    @contextmanager
    def alone(self, name: str, doing: str) -> Iterator[None]:
        """Have what goes wrong with one study stall that study, and nothing else.

        Args:
            name: The study.
            doing: What is done for it, for the reason that is published.

        Raises:
            redis.RedisError: Redis is away, or refuses everybody.
            InvalidInputError: The one study of this orchestrator cannot be opened.
            StudyStalledError: There is no other study to go on with.
        """
        try:
            yield
        except Exception as error:
            if isinstance(error, redis.RedisError) and is_general(error):
                raise
            if self._watch.has_lost_data():
                raise redis.ConnectionError("it lost its data") from error
            if isinstance(error, StudyTakenOverError):
                self._roster.leave_to_another(name)
                return
            driver = self._roster.drivers.get(name)
            is_open = driver is not None and driver.is_open
            is_refused = isinstance(error, InvalidInputError) and not is_open
            if is_refused and self._is_only:
                raise
            self._stall(name, f"{doing}: {describe_error(error, _MAX_REASON)}", error)

    def show_refusal(self, reason: str) -> None:
        """Say what concerns all studies where people look at them; again, for as long as it does.

        Of a study that is at a turn it is said at once, since that may never end, and again after
        it: what the turn publishes may hide it.
        """
        for name, driver in self._roster.drivers.items():
            turn = driver.turning if driver.is_at_a_turn else None
            said, shown = self._refusals.get(name), driver.shown.stalled
            if said is not None and said.turn is turn and shown == reason:
                continue
            # not over what another one shows, who has taken it over meanwhile
            with suppress(redis.RedisError, StudyTakenOverError):
                self._show(driver, reason)
                self._refusals[name] = _Refusal(turn, reason, said.before if said else shown)

    def end_refusal(self) -> None:
        """Say it no more of studies that are at the same turn still; others show how they stand.

        Raises:
            redis.RedisError: Redis is away, or refuses: it is to be tried again.
        """
        for name, said in list(self._refusals.items()):
            driver = self._roster.drivers.get(name)
            if driver is None:  # the right to it ran out meanwhile, and its turn may not end
                if self._studies.facts.get(name, "stalled") == said.reason:
                    self._studies.facts.publish_stall(name, said.before, is_news=False)
            elif (
                driver.is_at_a_turn
                and driver.turning is said.turn
                and driver.shown.stalled == said.reason
            ):
                with suppress(StudyTakenOverError):
                    self._show(driver, said.before)
            del self._refusals[name]

    def _show(self, driver: StudyDriver, reason: str | None) -> None:
        """Show why a study does not get on, if it does not."""
        self._led.facts.publish_stall(driver.name, reason, is_news=False)
        driver.shown.show_stall(reason)
        self._roster.tell(driver)

    def _stall(self, name: str, reason: str, error: Exception) -> None:
        """Leave a study alone for a while, and show why."""
        stall, is_new = self.stalls.note(name, reason)
        if is_new:
            log.error("study_stalled", study=name, reason=reason, exception=traceback_of(error))
        driver = self._roster.drivers.get(name)
        is_awaited = isinstance(error, StorageFullError) or is_database_error(error)
        if driver is not None:
            driver.is_disturbed = driver.is_doubtful = True
            driver.shown.show_stall(reason)
            self._roster.tell(driver)
        if not is_awaited:
            self._roster.abandon(name)  # whatever state it is in: it is opened anew
        with suppress(redis.RedisError):
            self._studies.facts.publish_stall(name, reason, is_news=is_new)
        if self._is_only and not is_awaited and stall.count >= _GIVE_UP_AFTER:
            raise StudyStalledError(
                f"study {name!r} does not get on: {reason}; the log has the traceback, and what"
                " is done is kept: mend it, and run it again"
            ) from error
