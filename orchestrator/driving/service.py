"""The orchestrator's loop: it hands each study what its trials told, its share, and its turns.

Each study is driven by a driver of its own, in turns that run off the loop: what is slow in its
sampler, its storage or its inbox delays nobody else's, and what fails stalls that study with a
reason that is published.

Invariant: one turn of the loop never waits longer than a fraction of a second, and neither a fault
of Redis nor one of a study ends the loop: what was read and not acknowledged is read again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from heapq import nsmallest
from typing import Final, Self

import redis

from orchestrator.driving.allotment import Allotment
from orchestrator.driving.catalogue import Catalogue
from orchestrator.driving.deletion import DeletionJobs, has_running
from orchestrator.driving.driver import StudyDriver
from orchestrator.driving.endings import Endings
from orchestrator.driving.event_filing import FLEET, EventFiling
from orchestrator.driving.isolation import Isolation
from orchestrator.driving.observer import NoObserver, Observer
from orchestrator.driving.queues import Queues
from orchestrator.driving.reaper import Reaper
from orchestrator.driving.recovery import resubmit_forgotten
from orchestrator.driving.redis_watch import RedisWatch
from orchestrator.driving.roster import Roster
from orchestrator.driving.surroundings import Surroundings
from orchestrator.driving.turns import TurnPool
from orchestrator.status import StudyStatus
from orchestrator.storage.open_files import allow_open_files
from workers.coordination.clock import lease_clock, server_time_ms
from workers.coordination.connection import connect, is_general, resolve_url
from workers.coordination.deletions import Deletions
from workers.coordination.hints import Hints
from workers.coordination.inbox import Entry, Inbox, are_ends
from workers.coordination.rights import Role
from workers.coordination.studies import Studies
from workers.coordination.study_lead import StudyLead
from workers.coordination.submitted import Submitted
from workers.disk.fleet_home import FleetHome
from workers.disk.study_folders import remove_aside
from workers.logs import get_logger
from workers.processes.membership import membership
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.errors import (
    FleetError,
    HomeRefusedError,
    InvalidInputError,
)
from workers.protocol.states import ProcessKind
from workers.settings import Settings

log = get_logger(__name__)

#: How long one read of the inbox waits.
_BLOCK_MS: Final = 250

#: How long ends of trials may wait for others, to be taken in with them: each turn costs the same,
#: whatever it takes in. Trials are kept ready for longer, so that no slot waits for it.
_GATHER_SECONDS: Final = 0.02

#: For how long a turn of the loop waits for the turns of the studies; slower ones go on beside it.
_PATIENCE_SECONDS: Final = 0.25

#: Between two looks at the registry's slots and at what was handed in.
_LOOK_SECONDS: Final = 1.0

#: Between two attempts to drive a study that is refused, or that another orchestrator holds.
_RETRY_SECONDS: Final = 5.0


#: Of studies that only wait for their share, so many are seen to in one turn, or of very many such
#: a part of all: in four turns a second, each every eight.
_RESTING_AT_A_TIME: Final = 16
_TURNS_FOR_ALL: Final = 32


@dataclass
class Service:
    """Drives studies until it is closed.

    Args:
        settings: This process's.
        only: Drive this study alone; by default all that are submitted.
        on_status: Called with each new status.
        observer: Is shown what is read of all studies and processes.
    """

    settings: Settings
    only: str | None = None
    on_status: Callable[[StudyStatus], None] = lambda _status: None
    observer: Observer = field(default_factory=NoObserver)
    is_draining: bool = False
    """Whether no further trial may be asked for."""
    _refused_at: dict[str, float] = field(default_factory=dict)
    _looked_at: float = 0.0
    _read_at: float = 0.0
    _are_ends: bool = False
    """Whether all that was read last were ends of trials."""
    _beat_at: float = 0.0
    _deleting: set[str] = field(default_factory=set)
    """Those that are being deleted: they are not driven any more."""
    _sweep: Reaper | None = None
    """Ends leases that ran out, if it was time for that at the last look."""
    _queues: Queues = field(default_factory=Queues)
    """The slots of the fleet, as last seen."""

    def __enter__(self) -> Self:
        allow_open_files()
        self._client = connect(self.settings, Role.ORCHESTRATOR)
        self._home = FleetHome(self._client, self.settings.home)
        self._home.lead()
        self._redis = RedisWatch(self._client, self._home, self.settings)
        self._studies = Studies(self._client, seal=self.settings.seal)
        self._catalogue = Catalogue(self._studies)
        self._deletions = Deletions(self._client)
        remove_aside(self.settings.home)
        self._hints = Hints(resolve_url(self.settings), self.settings.seal)
        self._registry = ProcessRegistry(self._client, self.settings.times)
        self._record = ProcessRecord(
            self._registry, ProcessKind.ORCHESTRATOR, fields=membership(self.settings)
        )
        self._record.register()
        self._inbox = Inbox(self._client, f"{self._record.identity.host}:{os.getpid()}")
        self._reaper = Reaper(self.settings.times)
        self._events = EventFiling(self._client, self.settings.home, observer=self.observer)
        self._pool = TurnPool()
        self._filing = self._file_events()
        self._roster = Roster(Endings(self._pool), self.on_status)
        self._isolation = Isolation(
            self._roster,
            self._redis,
            self._studies,
            str(self._record.identity),
            is_only=self.only is not None,
        )
        self._allotment = Allotment()
        self._deletion_jobs = DeletionJobs(
            self._client, self.settings, self._record.identity, self._pool
        )
        if self.only is None:
            resubmit_forgotten(self.settings, self._studies)
        return self

    def __exit__(self, *_: object) -> None:
        self._roster.leave_all(renew_after=self.settings.times.lease / 4)
        self._pool.close()
        with suppress(redis.RedisError):
            self._record.gone()
            if self._filing.done():
                self._events.file_all()
        self._hints.close()
        self._home.close()
        self._client.close()

    def turn(self) -> None:
        """One turn of the loop: at most about a quarter of a second.

        Raises:
            StudyStalledError: The one study of this orchestrator fails again and again.
            HomeRefusedError: The home of this orchestrator of one study is another fleet's by now.
        """
        try:
            if not self._redis.has_rights():
                self._isolation.show_refusal(self._redis.reason)
                time.sleep(_BLOCK_MS / 1000)
                return
            self._turn()
            self._redis.went_well()
            self._isolation.end_refusal()
        except (redis.RedisError, HomeRefusedError) as error:
            if self.only and isinstance(error, HomeRefusedError):
                raise
            reason = self._redis.failed(error)
            if self._redis.is_refused or isinstance(error, FleetError):
                self._isolation.show_refusal(reason)
            self._reaper.be_patient()
            for driver in self._roster.drivers.values():
                driver.is_disturbed = True
            self._looked_at = 0.0
            time.sleep(_BLOCK_MS / 1000)

    def is_done(self, name: str) -> bool:
        """Whether a study is over, and whoever is to know of it was told."""
        driver = self._roster.drivers.get(name)
        return driver is not None and driver.shown.is_done

    def status(self, name: str) -> StudyStatus | None:
        """The latest status of a study that is driven."""
        driver = self._roster.drivers.get(name)
        return None if driver is None else driver.shown.status

    def _turn(self) -> None:
        # first: what Redis lost must be there again before anything is read from it
        self._look()
        self._join_new()
        # in each turn the oldest of them, so that none has all to renew, each a round trip
        self._keep_rights(older_than=self.settings.times.lease / 4, most=self._few)
        self._look_at_resting()
        self._hand_out()
        self._keep_rights(older_than=self.settings.times.lease / 2)
        self._run({name: driver.take_in for name, driver in self._idle() if driver.has_news})
        granted = self._share()
        self._run(
            {
                name: partial(driver.go_on, granted.get(name, 0))
                for name, driver in self._idle()
                if driver.is_due(granted.get(name, 0))
            }
        )
        self._leave_over()
        self._roster.endings.look()

    def _idle(self) -> list[tuple[str, StudyDriver]]:
        """The studies that are to be seen to, and whose driver is not at a turn."""
        return [
            (name, driver)
            for name, driver in self._roster.drivers.items()
            if driver.turning is None and not self._holds(name)
        ]

    def _run(self, turns: Mapping[str, Callable[[], None]]) -> None:
        """Run turns of some studies beside one another, and see what has become of earlier ones.

        Raises:
            redis.RedisError: By one of them, when all have been seen to.
        """
        begun = [self._roster.drivers[name].begin(self._pool, turn) for name, turn in turns.items()]
        wait(begun, timeout=_PATIENCE_SECONDS)
        trouble: redis.RedisError | None = None
        for name, driver in list(self._roster.drivers.items()):
            turning = driver.turning
            if turning is None or not turning.done():
                continue
            driver.turning = None
            self._allotment.look_again(name)
            try:
                with self._isolation.alone(name, driver.doing):
                    turning.result()
            except redis.RedisError as error:
                trouble = error
            self._roster.tell(driver)
        if trouble is not None:
            raise trouble

    def _share(self) -> dict[str, int]:
        """How many trials each study may ask for now."""
        # what a study that does not get on has in flight would keep slots from the others
        getting_on = {
            name: driver
            for name, driver in self._roster.drivers.items()
            if driver.is_open and not driver.is_disturbed and not self._holds(name)
        }
        return self._allotment.grant(
            getting_on, dict(self._idle()), self._queues, is_draining=self.is_draining
        )

    def _holds(self, name: str) -> bool:
        """Whether a study is to be left alone for now."""
        return self._isolation.stalls.holds(name)

    def _leave_over(self) -> None:
        if self.only is not None:
            return
        for name, driver in self._idle():
            if driver.shown.is_done:
                with self._isolation.alone(name, "closing it"):
                    self._roster.leave(name)
                    self._catalogue.look_again(name)

    def _join_new(self) -> None:
        for name in [self.only] if self.only else self._catalogue.names():
            too_soon = time.monotonic() - self._refused_at.get(name, -1e9) < _RETRY_SECONDS
            if name in self._deleting:
                continue
            if name in self._roster or too_soon or self._holds(name):
                continue
            with self._isolation.alone(name, "opening it"):
                self._join(name)

    def _join(self, name: str) -> None:
        if self.only is None and not self._catalogue.waits_for_service(name):
            return
        right = StudyLead(self._client, name, self._record.identity, self.settings.times.lease)
        self._roster.submitted[name] = self._catalogue.submitted(name)
        held_at = lease_clock()
        if right.hold():
            self._drive(right, held_at)
            return
        refusal = (
            f"study {name!r} is driven by another orchestrator, {right.holder()};"
            " stop that one, or watch the study with `trialfleet watch`"
        )
        if self.only:
            raise InvalidInputError(refusal)
        self._refused_at[name] = time.monotonic()
        log.warning("study_not_driven", study=name, error=refusal)

    def _drive(self, right: StudyLead, held_at: float) -> None:
        name = right.study
        self._roster.drivers[name] = driver = StudyDriver(
            self._client, self._hints, self.settings, self._inbox, right, held_at, self.observer
        )
        driver.look_at(self._surroundings(self._roster.submitted[name]), None)
        self._allotment.begin(name)

    def _surroundings(self, submitted: Submitted) -> Surroundings:
        queue = submitted.spec.resources.queue
        return Surroundings(
            submitted,
            self._queues.slots(queue),
            self._queues.put_aside(queue),
            self._queues.trial_processes,
        )

    def _hand_out(self) -> None:
        """Read the inboxes, and give each study what is its own."""
        driven = [
            name
            for name, driver in self._roster.drivers.items()
            if driver.is_open and not self._holds(name)
        ]
        if not driven:
            time.sleep(self._block_ms() / 1000)
            return
        try:
            gathered = self._gather(driven)
            # of all of them, whoever told what was gathered: no study is to wait for another's
            entries = gathered + self._inbox.read(driven, 1 if gathered else self._block_ms())
        except redis.ResponseError as error:
            if is_general(error):
                raise
            for name in driven:  # it is of one of them, and names none: each is to be asked
                self._roster.drivers[name].is_disturbed = True
            return
        self._read_at, self._are_ends = time.monotonic(), are_ends(each for _, each in entries)
        by_study: dict[str, list[Entry]] = {}
        for name, entry in entries:
            by_study.setdefault(name, []).append(entry)
        for name, own in by_study.items():
            self._roster.drivers[name].hand(own)

    def _gather(self, driven: Sequence[str]) -> list[tuple[str, Entry]]:
        """Let further ends of trials come in, where ends came, as long as nobody asks anything."""
        gathered: list[tuple[str, Entry]] = []
        until = self._read_at + _GATHER_SECONDS
        asking = [name for name in driven if not self._roster.submitted[name].spec.space]
        while self._are_ends and (left := until - time.monotonic()) > 0:
            if not asking:
                time.sleep(left)
                break
            found = self._inbox.read(asking, max(1, int(left * 1000)))
            gathered += found
            if found and not are_ends(each for _, each in found):
                break
        return gathered

    def _block_ms(self) -> int:
        """How long to wait for entries: not at all while something else is to be done."""
        return 1 if any(driver.has_news for _, driver in self._idle()) else _BLOCK_MS

    def _look(self) -> None:
        """What need not be done in each turn: beat, see who is there and what was handed in."""
        now = time.monotonic()
        if now - self._looked_at < _LOOK_SECONDS * min(1.0, self.settings.time_scale):
            return
        self._looked_at = now
        if now - self._beat_at >= self.settings.times.beat:
            self._beat_at = now
            self._record.beat()
        if self._redis.has_restarted():
            self._reaper.be_patient()  # it may have forgotten holders' last renewals
        self._restore_lost()
        self._delete_begun()
        processes = list(self._registry.entries(prunes=True))
        self._queues = Queues(processes)
        if self._filing.done():
            self._filing = self._file_events()
        self._catalogue.look(self.only)
        self._forget_others()
        is_due = self._reaper.is_due(server_time_ms(self._client))
        self._sweep = self._reaper if is_due else None
        for name, driver in list(self._roster.drivers.items()):
            with self._isolation.alone(name, "reading what was handed in"):
                self._roster.submitted[name] = submitted = self._catalogue.submitted(name)
                if driver.look_at(self._surroundings(submitted), self._sweep):
                    self._allotment.look_again(name)
        self.observer.saw_fleet(self._roster.standing(), processes)

    def _look_at_resting(self) -> None:
        """See to studies that rest, now and then, and to few of them in one turn."""
        resting = (driver for _, driver in self._idle() if driver.has_long_rested)
        for driver in nsmallest(self._few, resting, key=lambda driver: driver.looked_after_at):
            driver.look_after(self._sweep)

    @property
    def _few(self) -> int:
        """To how many studies one turn sees of what none of them waits for."""
        return max(_RESTING_AT_A_TIME, len(self._roster.drivers) // _TURNS_FOR_ALL)

    def _file_events(self) -> Future[None]:
        """File what happened to processes, off the loop: it may be a slow disk."""
        return self._pool.submit(FLEET, self._events.file)

    def _forget_others(self) -> None:
        """Keep nothing of studies that are over, or not there any more."""
        known = {*self._catalogue.names(), *self._roster.drivers, *self._deleting}
        self._refused_at = {name: at for name, at in self._refused_at.items() if name in known}
        self._isolation.stalls.forget_others(known)
        # not by what is not there: Redis may have lost it
        ended = self._studies.ended(self._roster.submitted.keys() - known)
        self._roster.forget_others(known, ended)
        submitted = self._roster.submitted.values()
        self._allotment.forget_others(known, {each.spec.resources.queue for each in submitted})

    def _delete_begun(self) -> None:
        """Delete what people asked to have deleted, once nobody runs a trial of it."""
        begun = set() if self.only else set(self._deletions.begun())
        self._deleting = self._deletion_jobs.names()
        for name in sorted(begun | self._deleting):
            with self._isolation.alone(name, "deleting it"):
                self._deletion_jobs.go_on(name, may_begin=name in begun and self._may_delete(name))

    def _may_delete(self, name: str) -> bool:
        """Whether a study may be deleted now: nothing of this orchestrator writes of it then."""
        if self._holds(name) or has_running(self._client, name):
            return False  # they were cancelled, and end first
        self._deleting.add(name)
        self._roster.abandon(name)
        self._roster.submitted.pop(name, None)
        return name not in self._roster

    def _restore_lost(self) -> None:
        """Build up again what Redis lost, from the storage and the checkpoints on disk."""
        epoch, there = self._redis.take_epoch(), self._studies.existing(self._roster.submitted)
        for name, submitted in list(self._roster.submitted.items()):
            driver = self._roster.drivers.get(name)
            study = None if driver is None else driver.open_study
            if name in there and (study is None or study.leases.epoch == epoch):
                continue
            if name in self._deletions.done():  # by another orchestrator
                self._roster.submitted.pop(name)
                self._roster.abandon(name)
                continue
            log.error("redis_lost_its_data", study=name, epoch=epoch)
            self._record.register()
            self._reaper.be_patient()
            with self._isolation.alone(name, "writing it again into a Redis that lost its data"):
                self._studies.restore(submitted)
                if driver is not None and study is not None:
                    study.start_epoch(epoch)
                    driver.is_disturbed = True

    def _keep_rights(self, older_than: float, most: int | None = None) -> None:
        """Stay the orchestrator of each study, or leave it to the one that took over.

        Args:
            older_than: Leave rights that were renewed in so many seconds. To be asked before each
                write: this process may have been stopped for any time.
            most: Of so many, the oldest; by default of all.
        """
        old = (
            (name, driver)
            for name, driver in self._roster.drivers.items()
            if driver.is_right_older(older_than)
        )
        chosen = (
            list(old) if most is None else nsmallest(most, old, key=lambda each: each[1].held_at)
        )
        for name, driver in chosen:
            with self._isolation.alone(name, "keeping the right to drive it"):
                if not driver.keep_right(older_than):
                    self._roster.leave_to_another(name)
        self._roster.endings.keep_rights(older_than)
