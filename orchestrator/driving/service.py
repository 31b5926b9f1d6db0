"""The orchestrator's loop: inbox, dispatch, reaper and status, for all studies it drives.

Each study is driven on its own: what fails in its sampler, its pruner, its storage or its inbox
stalls that study with a reason that is published, and the others go on.

Invariant: one turn of the loop never waits longer than a fraction of a second, and neither a fault
of Redis nor one of a study ends the loop: what was read and not acknowledged is read again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, Self

import redis

from orchestrator.driving.collector import Collector
from orchestrator.driving.control import obey
from orchestrator.driving.dispatch import Dispatcher
from orchestrator.driving.driven import DrivenStudy
from orchestrator.driving.reaper import Reaper
from orchestrator.driving.recovery import resubmit_forgotten
from orchestrator.driving.redis_watch import RedisWatch
from orchestrator.driving.stalls import Stalls
from orchestrator.status import StudyStatus, build_status
from orchestrator.storage.opening import is_database_error
from workers.coordination.clock import lease_clock, server_time_ms
from workers.coordination.connection import connect, resolve_url
from workers.coordination.hints import Hints
from workers.coordination.inbox import Inbox
from workers.coordination.rights import Role
from workers.coordination.studies import Studies, Submitted
from workers.coordination.study_lead import StudyLead
from workers.disk.fleet_home import FleetHome
from workers.logs import get_logger, traceback_of
from workers.processes.registry import ProcessEntry, ProcessRecord, ProcessRegistry
from workers.processes.slots import num_slots, refusing_slots
from workers.protocol.errors import InvalidInputError, StorageFullError, StudyStalledError
from workers.protocol.plain import describe_error
from workers.protocol.states import ProcessKind, Wish
from workers.settings import Settings

log = get_logger(__name__)

#: How long one read of the inbox waits, and so how soon a new slot or study is seen.
_BLOCK_MS: Final = 250

#: Between two looks at the registry's slots, and two publications of an unchanged status.
_LOOK_SECONDS: Final = 1.0

#: Between two attempts to drive a study that is refused, or that another orchestrator holds.
_RETRY_SECONDS: Final = 5.0

#: After so many failures in a row, an orchestrator of one study alone gives up.
_GIVE_UP_AFTER: Final = 3

#: How much of an error is published as the reason of a stall.
_MAX_REASON: Final = 500


@dataclass
class _Lead:
    """One driven study with those who work on it."""

    right: StudyLead
    held_at: float
    """When the right was last renewed, by `lease_clock`."""
    study: DrivenStudy
    dispatcher: Dispatcher
    collector: Collector
    status: StudyStatus
    slots: int = 0
    opened_at: float = field(default_factory=time.monotonic)
    put_aside: list[str] = field(default_factory=list)
    """Slots of its queue that take no trials, each with the reason."""
    is_stale: bool = True
    """Whether the status must be built anew."""
    is_disturbed: bool = False
    """Whether a turn was broken off: what it had read or begun is to be done again."""
    wish: Wish = Wish.RUN
    """What people want of it."""


@dataclass
class Service:
    """Drives studies until it is closed.

    Args:
        settings: This process's.
        only: Drive this study alone; by default all that are submitted.
        on_status: Called with each new status.
    """

    settings: Settings
    only: str | None = None
    on_status: Callable[[StudyStatus], None] = lambda _status: None
    is_draining: bool = False
    """Whether no further trial may be asked for."""
    _leads: dict[str, _Lead] = field(default_factory=dict)
    _refused_at: dict[str, float] = field(default_factory=dict)
    _looked_at: float = 0.0
    _beat_at: float = 0.0
    _submitted: dict[str, Submitted] = field(default_factory=dict)
    """The studies that are not over, as Redis had them: it may lose its data."""
    _entries: list[ProcessEntry] = field(default_factory=list)
    """The processes of the fleet, as last seen."""
    _stalls: Stalls = field(default_factory=Stalls)

    def __enter__(self) -> Self:
        self._client = connect(self.settings, Role.ORCHESTRATOR)
        self._home = FleetHome(self._client, self.settings.home)
        self._home.lead()
        self._redis = RedisWatch(self._client, self._home, self.settings)
        self._studies = Studies(self._client)
        self._hints = Hints(resolve_url(self.settings))
        self._registry = ProcessRegistry(self._client, self.settings.times)
        self._record = ProcessRecord(self._registry, ProcessKind.ORCHESTRATOR)
        self._record.register()
        self._inbox = Inbox(self._client, f"{self._record.identity.host}:{os.getpid()}")
        self._reaper = Reaper(self.settings.times)
        if self.only is None:
            resubmit_forgotten(self.settings, self._studies)
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._leads):
            self._leave(name)
        with suppress(redis.RedisError):
            self._record.gone()
        self._hints.close()
        self._home.close()
        self._client.close()

    def turn(self) -> None:
        """One turn of the loop: at most about a quarter of a second.

        Raises:
            StudyStalledError: The one study of this orchestrator fails again and again.
        """
        try:
            if not self._redis.has_rights():
                time.sleep(_BLOCK_MS / 1000)
                return
            self._turn()
            self._redis.went_well()
        except redis.RedisError as error:
            reason = self._redis.failed(error)
            if reason is not None and self._redis.is_refused:
                self._show_refusal(reason)
            self._reaper.be_patient()
            for lead in self._leads.values():
                lead.is_disturbed = True
            self._looked_at = 0.0
            time.sleep(_BLOCK_MS / 1000)

    def _show_refusal(self, reason: str) -> None:
        """Say what Redis refuses us where people look at studies."""
        for name, lead in self._leads.items():
            lead.status = lead.status.model_copy(update={"stalled": reason})
            self.on_status(lead.status)
            with suppress(redis.RedisError):
                self._studies.publish(name, {"stalled": reason})

    @contextmanager
    def _alone(self, name: str, doing: str) -> Iterator[None]:
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
            # a key of this study that holds something else is the study's trouble, and no more
            if isinstance(error, redis.RedisError) and "WRONGTYPE" not in str(error):
                raise
            if self._redis.has_lost_data():
                raise redis.ConnectionError("it lost its data") from error
            is_refused = isinstance(error, InvalidInputError) and name not in self._leads
            if is_refused and self.only:
                raise
            self._stall(name, f"{doing}: {describe_error(error, _MAX_REASON)}", error)

    def _stall(self, name: str, reason: str, error: Exception) -> None:
        """Leave a study alone for a while, and show why."""
        stall, is_new = self._stalls.note(name, reason)
        if is_new:
            log.error("study_stalled", study=name, reason=reason, exception=traceback_of(error))
        lead = self._leads.get(name)
        is_awaited = isinstance(error, StorageFullError) or is_database_error(error)
        if lead is not None:
            lead.is_disturbed = True
            lead.status = lead.status.model_copy(update={"stalled": reason})
            self.on_status(lead.status)
        if not is_awaited:
            self._abandon(name)  # whatever state it is in: it is opened anew
        with suppress(redis.RedisError):
            self._studies.publish(name, {"stalled": reason})
        if self.only and not is_awaited and stall.count >= _GIVE_UP_AFTER:
            raise StudyStalledError(
                f"study {name!r} does not get on: {reason}; the log has the traceback, and what"
                " is done is kept: mend it, and run it again"
            ) from error

    def _abandon(self, name: str) -> None:
        """Drop a study whose storage may not be written any more."""
        lead = self._leads.pop(name, None)
        if lead is None:
            return
        try:
            lead.study.abandon()
        except Exception:
            log.exception("storage_not_closed", study=name)
        with suppress(redis.RedisError):
            lead.right.release()

    def _driven(self) -> list[tuple[str, _Lead]]:
        """The studies that are to be seen to in this turn."""
        return [each for each in self._leads.items() if not self._stalls.holds(each[0])]

    def status(self, name: str) -> StudyStatus | None:
        """The latest status of a study that is driven."""
        lead = self._leads.get(name)
        return None if lead is None else lead.status

    def _turn(self) -> None:
        # first: what Redis lost must be there again before anything is read from it
        self._look()
        for name, lead in self._driven():
            if lead.is_disturbed:
                with self._alone(name, "going on after a failure"):
                    self._catch_up(lead)
        self._join_new()
        self._collect()
        self._keep_leads(only_old=True)
        for name, lead in self._driven():
            with self._alone(name, "asking for trials"):
                self._fill(name, lead)

    def _fill(self, name: str, lead: _Lead) -> None:
        if lead.dispatcher.fill(lead.slots, may_start=self._may_start(lead)):
            lead.is_stale = True
        if lead.is_stale:
            self._publish(lead)
        if lead.status.is_over and self.only is None:
            self._leave(name)

    def _join_new(self) -> None:
        for name in [self.only] if self.only else self._studies.names():
            too_soon = time.monotonic() - self._refused_at.get(name, -1e9) < _RETRY_SECONDS
            if name in self._leads or too_soon or self._stalls.holds(name):
                continue
            with self._alone(name, "opening it"):
                self._join(name)

    def _join(self, name: str) -> None:
        right = StudyLead(self._client, name, self._record.identity, self.settings.times.lease)
        if not self._is_to_be_driven(name):
            return
        self._submitted[name] = self._studies.submitted(name)
        held_at = lease_clock()
        if right.hold():
            self._lead(name, right, held_at)
            return
        refusal = (
            f"study {name!r} is driven by another orchestrator, {right.holder()};"
            " stop that one, or watch the study with `trialfleet watch`"
        )
        if self.only:
            raise InvalidInputError(refusal)
        self._refused_at[name] = time.monotonic()
        log.warning("study_not_driven", study=name, error=refusal)

    def _is_over(self, name: str) -> bool:
        """Whether a study ended and nobody extended it since."""
        over = self._studies.fact(name, "over")
        return over is not None and over in self._studies.digests(name)

    def _is_to_be_driven(self, name: str) -> bool:
        """Whether this orchestrator is asked to drive a study that waits for one."""
        return bool(self.only) or not (self._studies.is_by_run(name) or self._is_over(name))

    def _lead(self, name: str, right: StudyLead, held_at: float) -> None:
        try:
            study = DrivenStudy(self._client, self._hints, name, self.settings)
        except BaseException:
            right.release()
            raise
        collector = Collector(study)
        lead = _Lead(
            right,
            held_at,
            study,
            Dispatcher(study, collector, self.settings),
            collector,
            build_status(study.spec, study.tally, wall_seconds=study.wall_seconds),
            num_slots(study.spec.resources.queue, self._entries),
            wish=self._studies.wish(name),
        )
        study.take_owner(is_by_run=self._studies.is_by_run(name))
        self._submitted[name] = self._studies.submitted(name)  # with where it was begun
        self._leads[name] = lead
        self._catch_up(lead)
        log.info(
            "study_driven", study=name, trials=study.tally.num_trials, wanted=study.spec.trials
        )

    def _catch_up(self, lead: _Lead) -> None:
        """Take in what was read and never acknowledged, by whomever, and announce what waits."""
        pending = self._inbox.join(lead.study.name)
        lead.collector.collect(pending)
        self._inbox.acknowledge(lead.study.name, [entry.id for entry in pending])
        lead.dispatcher.reconcile(server_time_ms(self._client), at_start=True)
        lead.is_stale, lead.is_disturbed = True, False

    def _leave(self, name: str) -> None:
        lead = self._leads.pop(name)
        self._submitted.pop(name, None)
        lead.study.close()
        with suppress(redis.RedisError):  # it runs out by itself
            lead.right.release()
        log.info("study_left", study=name, state=lead.status.state.value)

    def _collect(self) -> None:
        driven = dict(self._driven())
        if not driven:
            time.sleep(_BLOCK_MS / 1000)
            return
        try:
            entries = self._inbox.read(list(driven), _BLOCK_MS)
        except redis.exceptions.NoPermissionError:
            raise
        except redis.ResponseError:  # of one of them, and it names none: each is to be asked
            for lead in driven.values():
                lead.is_disturbed = True
            return
        self._keep_leads(only_old=True)
        for name in dict.fromkeys(study for study, _ in entries if study in self._leads):
            lead = self._leads[name]
            own = [entry for study, entry in entries if study == name]
            with self._alone(name, "taking in what its trials told"):
                lead.collector.collect(own)
                lead.is_stale = True
                self._inbox.acknowledge(name, [entry.id for entry in own])

    def _look(self) -> None:
        """What need not be done in each turn: beat, count slots, reap, reconcile."""
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
        self._keep_leads()
        self._entries = list(self._registry.entries())
        now_ms = server_time_ms(self._client)
        reap = self._reaper.is_due(now_ms)
        for name, lead in self._driven():
            with self._alone(name, "looking after it"):
                self._count_slots(lead)
                if lead.slots or now - lead.opened_at > self.settings.times.lease:
                    lead.study.start_clock()  # of a study without workers, too
                lead.study.note_clock(at_most_every=self.settings.times.beat)
                self._submitted[name] = submitted = self._studies.submitted(name)
                lead.study.take_spec(submitted.spec)
                lead.wish = submitted.wish
                lead.study.take_owner(is_by_run=submitted.is_by_run)
                obey(lead.study, lead.dispatcher, lead.wish, now_ms)
                if reap:
                    self._reaper.sweep(lead.study, now_ms)
                    if not lead.wish.is_pause:  # nobody could claim what is announced
                        lead.dispatcher.reconcile(now_ms)
                lead.is_stale = True

    def _count_slots(self, lead: _Lead) -> None:
        queue = lead.study.spec.resources.queue
        lead.slots = num_slots(queue, self._entries)
        lead.put_aside = [
            f"{slot.gpu} of {slot.identity.host}: {slot.aside}"
            for slot in refusing_slots(queue, self._entries)
        ]

    def _restore_lost(self) -> None:
        """Build up again what Redis lost, from the storage and the checkpoints on disk."""
        epoch = self._redis.take_epoch()
        for name, submitted in list(self._submitted.items()):
            lead = self._leads.get(name)
            is_there = self._studies.exists(name)
            if is_there and (lead is None or lead.study.leases.epoch == epoch):
                continue
            log.error("redis_lost_its_data", study=name, epoch=epoch)
            self._record.register()
            self._reaper.be_patient()
            with self._alone(name, "writing it again into a Redis that lost its data"):
                self._studies.restore(submitted)
                if lead is not None:
                    lead.study.start_epoch(epoch)
                    self._catch_up(lead)

    def _keep_leads(self, *, only_old: bool = False) -> None:
        """Stay the orchestrator of each study, or leave it to the one that took over.

        Args:
            only_old: Leave rights that were just renewed. To be asked before each write: this
                process may have been stopped for any time.
        """
        for name, lead in list(self._leads.items()):
            now = lease_clock()
            if only_old and now - lead.held_at < self.settings.times.lease / 2:
                continue
            if lead.right.hold():
                lead.held_at = now
            else:
                log.error("study_taken_over", study=name)
                self._leads.pop(name).study.abandon()

    def _may_start(self, lead: _Lead) -> bool:
        if self.is_draining or lead.wish is not Wish.RUN or lead.study.is_exhausted:
            return False
        return not lead.study.is_out_of_time

    def _publish(self, lead: _Lead) -> None:
        study = lead.study
        lead.is_stale = False
        lead.status = build_status(
            study.spec,
            study.tally,
            wall_seconds=study.wall_seconds,
            slots=lead.slots,
            put_aside=lead.put_aside,
            leases=study.leases,
            results=str(self.settings.home / "studies" / study.name / "trials"),
            set_aside=lead.collector.set_aside,
            is_exhausted=study.is_exhausted,
            wish=lead.wish,
            activities={str(e.identity): e.activity for e in self._entries if e.activity},
        ).model_copy(update={"as_of": time.time()})
        study.publish(
            {
                "status": lead.status.model_dump(mode="json"),
                "best_value": _first_value(lead.status),
                "over": study.spec.digest() if lead.status.is_over else None,
                "stalled": None,
            }
        )
        self.on_status(lead.status)


def _first_value(status: StudyStatus) -> float | None:
    best = status.best
    if best is None or best.value is not None:
        return None if best is None else best.value
    return best.values[0] if best.values else None
