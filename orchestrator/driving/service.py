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

from orchestrator.driving.admission import Admission
from orchestrator.driving.allotment import Allotment
from orchestrator.driving.catalogue import Catalogue
from orchestrator.driving.deletion import DeletionJobs
from orchestrator.driving.driver import StudyDriver
from orchestrator.driving.endings import Endings
from orchestrator.driving.event_filing import FLEET, EventFiling
from orchestrator.driving.intake import Intake
from orchestrator.driving.isolation import Isolation
from orchestrator.driving.observer import NoObserver, Observer
from orchestrator.driving.queues import Queues
from orchestrator.driving.reaper import Reaper
from orchestrator.driving.recovery import resubmit_forgotten
from orchestrator.driving.redis_watch import RedisWatch
from orchestrator.driving.rights import Rights
from orchestrator.driving.roster import Roster
from orchestrator.driving.sharing import Sharing
from orchestrator.driving.turns import TurnPool
from orchestrator.status import StudyStatus
from orchestrator.storage.open_files import allow_open_files
from workers.coordination.clock import server_time_ms
from workers.coordination.connection import connect, resolve_url
from workers.coordination.hints import Hints
from workers.coordination.inbox import Inbox
from workers.coordination.rights import Role
from workers.coordination.studies import Studies
from workers.disk.fleet_home import FleetHome
from workers.disk.study_folders import remove_aside
from workers.logs import get_logger
from workers.processes.membership import membership
from workers.processes.registry import ProcessEntry, ProcessRecord, ProcessRegistry
from workers.protocol.errors import FleetError, HomeRefusedError
from workers.protocol.states import ProcessKind
from workers.settings import Settings

log = get_logger(__name__)

#: How long one read of the inbox waits.
_BLOCK_MS: Final = 250

#: For how long a turn of the loop waits for the turns of the studies; slower ones go on beside it.
_PATIENCE_SECONDS: Final = 0.25

#: Between two looks at the registry's slots and at what was handed in.
_LOOK_SECONDS: Final = 1.0

#: Of what none of the studies waits for, so much is done in one turn, or where they are very many
#: such a part of all: in four turns a second, for each study every eight or thirty-two seconds.
_AT_A_TIME: Final = 8
_TURNS_FOR_RIGHTS: Final = 32
_TURNS_FOR_RESTING: Final = 128


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
    _looked_at: float = 0.0
    _beat_at: float = 0.0
    _sweep: Reaper | None = None
    """Ends leases that ran out, if it was time for that at the last look."""
    _queues: Queues = field(default_factory=Queues)
    """The slots of the fleet, as last seen."""

    def __enter__(self) -> Self:
        allow_open_files()
        self._join_fleet()
        self._pool = TurnPool()
        self._filing = self._file_events()
        self._roster = Roster(Endings(self._pool), self.on_status)
        self._intake = Intake(self._inbox, self._roster)
        self._allotment = Allotment()
        identity = self._record.identity
        self._isolation = Isolation(
            self._roster, self._redis, self._studies, str(identity), is_only=self.only is not None
        )
        self._rights = Rights(self._roster, self._isolation)
        self._deletions = DeletionJobs(
            self._client, self.settings, identity, self._pool, self._roster
        )
        self._sharing = Sharing(self._record, self.settings, self.only)
        self._admission = Admission(
            self._client,
            self._hints,
            self._inbox,
            self.settings,
            identity,
            self.observer,
            self._sharing,
            self.only,
        )
        if self.only is None:
            resubmit_forgotten(self.settings, self._studies)
        return self

    def _join_fleet(self) -> None:
        """Become an orchestrator that the fleet knows, in a home that is the fleet's."""
        self._client = connect(self.settings, Role.ORCHESTRATOR)
        self._home = FleetHome(self._client, self.settings.home)
        self._home.lead()
        self._redis = RedisWatch(self._client, self._home, self.settings)
        self._studies = Studies(self._client, seal=self.settings.seal)
        self._catalogue = Catalogue(self._studies)
        remove_aside(self.settings.home)
        self._hints = Hints(resolve_url(self.settings), self.settings.seal)
        self._registry = ProcessRegistry(self._client, self.settings.times)
        self._record = ProcessRecord(
            self._registry,
            ProcessKind.ORCHESTRATOR,
            fields={**membership(self.settings), "drives": self.only},
        )
        self._record.register()
        self._inbox = Inbox(self._client, f"{self._record.identity.host}:{os.getpid()}")
        self._reaper = Reaper(self.settings.times)
        self._events = EventFiling(self._client, self.settings.home, observer=self.observer)

    def __exit__(self, *_: object) -> None:
        self._sharing.withdraw()
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
            self._sharing.withdraw()
            reason = self._redis.failed(error)
            if self._redis.is_refused or isinstance(error, FleetError):
                self._isolation.show_refusal(reason)
            self._reaper.be_patient()
            for driver in self._roster.drivers.values():
                driver.is_disturbed = True
            self._looked_at = 0.0
            time.sleep(_BLOCK_MS / 1000)

    @property
    def trouble(self) -> str | None:
        """Why Redis did not do what the last turn asked; None where it did."""
        return self._redis.trouble

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
        few = self._part_of_all(_TURNS_FOR_RIGHTS)
        self._rights.keep(older_than=self.settings.times.lease / 4, most=few)
        self._look_at_resting()
        self._intake.hand_out(self._open(), self._block_ms())
        self._rights.keep(older_than=self.settings.times.lease / 2)
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
        held = self._isolation.stalls.held()
        return [
            (name, driver)
            for name, driver in self._roster.drivers.items()
            if driver.turning is None and name not in held
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
        held = self._isolation.stalls.held()
        # what a study that does not get on has in flight would keep slots from the others
        getting_on = {
            name: driver
            for name, driver in self._roster.drivers.items()
            if driver.is_open and not driver.is_disturbed and name not in held
        }
        return self._allotment.grant(
            getting_on,
            dict(self._idle()),
            self._queues,
            self._sharing.partners,
            is_draining=self.is_draining,
        )

    def _leave_over(self) -> None:
        if self.only is not None:
            return
        for name, driver in self._idle():
            if driver.shown.is_done:
                with self._isolation.alone(name, "closing it"):
                    self._roster.leave(name)
                    self._catalogue.look_again(name)

    def _join_new(self) -> None:
        held = self._isolation.stalls.held()
        for name in [self.only] if self.only else self._catalogue.names():
            if name in self._roster or name in self._deletions.studies or name in held:
                continue
            with self._isolation.alone(name, "opening it"):
                driver = self._admission.admit(name, self._catalogue, self._roster)
                if driver is not None:
                    driver.look_at(self._queues.around(self._roster.submitted[name]), None)
                    self._allotment.begin(name)

    def _open(self) -> list[str]:
        """The studies that are open, and that are to be seen to."""
        held = self._isolation.stalls.held()
        drivers = self._roster.drivers.items()
        return [name for name, driver in drivers if driver.is_open and name not in held]

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
        if self.only is None:
            self._deletions.look(self._isolation)
        processes = list(self._registry.entries(prunes=True))
        self._queues = Queues(processes)
        if self._filing.done():
            self._filing = self._file_events()
        self._catalogue.look(self.only)
        self._forget_others()
        self._share_studies(processes)
        is_due = self._reaper.is_due(server_time_ms(self._client))
        self._sweep = self._reaper if is_due else None
        for name, driver in list(self._roster.drivers.items()):
            with self._isolation.alone(name, "reading what was handed in"):
                self._roster.submitted[name] = submitted = self._catalogue.submitted(name)
                if driver.look_at(self._queues.around(submitted), self._sweep):
                    self._allotment.look_again(name)
        self.observer.saw_fleet(self._roster.standing(), processes)

    def _share_studies(self, processes: Sequence[ProcessEntry]) -> None:
        """Tell other orchestrators how many studies are driven here, and hand some on to them."""
        known, drivers = self._roster.submitted, self._roster.drivers
        driven = {name: known[name].spec.resources.queue for name in drivers if name in known}
        is_well = not self._isolation.stalls.are_any
        self._sharing.look(processes, driven, known, self._allotment.uses, is_well=is_well)
        self._admission.look(self._catalogue, self._roster)
        stalled = self._isolation.stalls.held(longer_than=self.settings.times.lease)
        for name in self._sharing.to_give_up(stalled & driven.keys()):
            log.warning("study_given_up", study=name, hint="another orchestrator is to try it")
            self._roster.abandon(name)
        calm = {name for name, driver in self._idle() if driver.is_open and not driver.has_news}
        for name in self._sharing.to_hand_on(driven, calm):
            with self._isolation.alone(name, "handing it on"):
                log.info("study_handed_on", study=name, studies=len(driven))
                self._roster.leave(name)

    def _look_at_resting(self) -> None:
        """See to studies that rest, now and then, and to few of them in one turn."""
        lease = self.settings.times.lease
        waiting = (driver for _, driver in self._idle() if driver.is_long_unseen(lease))
        most = self._part_of_all(_TURNS_FOR_RESTING)
        for driver in nsmallest(most, waiting, key=lambda driver: driver.looked_after_at):
            if driver.rests:
                driver.look_after(self._sweep)

    def _part_of_all(self, turns: int) -> int:
        """For how many studies that is to be done in one turn which so many turns do for all."""
        return max(_AT_A_TIME, len(self._roster.drivers) // turns)

    def _file_events(self) -> Future[None]:
        """File what happened to processes, off the loop: it may be a slow disk."""
        return self._pool.submit(FLEET, self._events.file)

    def _forget_others(self) -> None:
        """Keep nothing of studies that are over, or not there any more."""
        known = {*self._catalogue.names(), *self._roster.drivers, *self._deletions.studies}
        self._admission.forget_others(known)
        self._isolation.stalls.forget_others(known)
        # not by what is not there: Redis may have lost it
        ended = self._studies.ended(self._roster.submitted.keys() - known)
        self._roster.forget_others(known, ended)
        submitted = self._roster.submitted.values()
        self._allotment.forget_others(known, {each.spec.resources.queue for each in submitted})

    def _restore_lost(self) -> None:
        """Build up again what Redis lost, from the storage and the checkpoints on disk."""
        epoch, there = self._redis.take_epoch(), self._studies.existing(self._roster.submitted)
        for name, submitted in list(self._roster.submitted.items()):
            driver = self._roster.drivers.get(name)
            study = None if driver is None else driver.open_study
            if name in there and (study is None or study.leases.epoch == epoch):
                continue
            if self._deletions.is_done(name):  # by another orchestrator
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
