"""Deleting a study: its results, what Redis holds of it, and then its name.

Invariant: only who has the right to drive the study deletes it, and only when nobody runs a trial
of it; a deletion that is broken off anywhere is done by whoever tries it next. One who stood still
past his right deletes nothing more: each step is preceded by a look whether he has it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress

import redis

from orchestrator.driving.isolation import Isolation
from orchestrator.driving.roster import Roster
from orchestrator.driving.turns import TurnPool
from orchestrator.storage.results_removal import remove_results
from workers.coordination.clock import server_time_ms
from workers.coordination.deletions import Deletions
from workers.coordination.identity import ProcessIdentity
from workers.coordination.studies import Studies
from workers.coordination.study_lead import StudyLead
from workers.logs import get_logger
from workers.protocol.errors import StudyTakenOverError
from workers.settings import Settings

log = get_logger(__name__)


def try_delete(client: redis.Redis, settings: Settings, name: str, owner: ProcessIdentity) -> bool:
    """Delete a study whose deletion was begun, if that can be now; whether it is done.

    Args:
        client: The fleet's Redis, with an orchestrator's rights.
        settings: Those of the orchestrator that keeps the results.
        name: The study.
        owner: This process.

    Raises:
        InvalidInputError: Its results are kept elsewhere.
    """
    studies = Studies(client)
    if has_running(client, name):
        return False
    right = StudyLead(client, name, owner, settings.times.lease)
    if not right.hold():
        return False
    try:
        with _kept(right):
            remove_results(settings, name, studies.origin(name), right.check)
            Deletions(client).finish(name, right.check)
    except StudyTakenOverError as error:
        log.warning("deletion_left", study=name, error=str(error))
        return False
    log.info("study_deleted", study=name)
    return True


def has_running(client: redis.Redis, name: str) -> bool:
    """Whether somebody may be running a trial of a study."""
    now_ms = server_time_ms(client)
    return any(deadline > now_ms for deadline in Studies(client).leases(name).running().values())


@contextmanager
def _kept(right: StudyLead) -> Iterator[None]:
    """Hold a right that one has for as long as it takes, and release it."""
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(right.lease_seconds / 4):
            with suppress(redis.RedisError):  # a later one may do
                right.hold(only_stay=True)

    keeper = threading.Thread(target=keep, name=f"right-{right.study}", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
        right.release()


class DeletionJobs:
    """The deletions that an orchestrator is at, off its loop.

    Args:
        client: The fleet's Redis.
        settings: This orchestrator's.
        owner: This process.
        pool: Has the threads for it.
        roster: The studies that are driven; none that is being deleted.
    """

    def __init__(
        self,
        client: redis.Redis,
        settings: Settings,
        owner: ProcessIdentity,
        pool: TurnPool,
        roster: Roster,
    ) -> None:
        self._client = client
        self._deletions = Deletions(client)
        self._settings = settings
        self._owner = owner
        self._pool = pool
        self._roster = roster
        self._jobs: dict[str, Future[None]] = {}
        self.studies: set[str] = set()
        """Those that are being deleted, or that it failed for: they are not driven any more."""

    def look(self, isolation: Isolation) -> None:
        """Delete what people asked to have deleted, once nobody runs a trial of it.

        Args:
            isolation: Has what goes wrong with it stall that study.
        """
        begun = set(self._deletions.begun())
        self.studies = set(self._jobs)
        for name in sorted(begun | self.studies):
            with isolation.alone(name, "deleting it"):
                is_held = name in isolation.stalls.held()
                self._go_on(name, may_begin=name in begun and not is_held and self._free(name))

    def is_done(self, name: str) -> bool:
        """Whether a study was deleted, by whomever."""
        return name in self._deletions.done()

    def _free(self, name: str) -> bool:
        """Leave a study whose trials nobody runs; whether nothing of it is written here now."""
        if has_running(self._client, name):
            return False  # they were cancelled, and end first
        self.studies.add(name)
        self._roster.abandon(name)
        self._roster.submitted.pop(name, None)
        return name not in self._roster

    def _go_on(self, name: str, *, may_begin: bool) -> None:
        """Begin to delete a study, or see how that went; what failed may be begun again.

        Raises:
            Exception: What it failed with.
        """
        job = self._jobs.get(name)
        if job is not None and job.done():
            del self._jobs[name]
            job.result()
        elif job is None and may_begin:
            self._jobs[name] = self._pool.submit(name, lambda: self._delete(name))

    def _delete(self, name: str) -> None:
        try_delete(self._client, self._settings, name, self._owner)
