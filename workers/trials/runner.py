"""Runs the trials that a message hints at, in this pool process: those that it is granted.

Invariant: what was hinted at is run here, or left to others, or in other hands already; the
message goes back where none of that could be done.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Self

import redis
import structlog

from workers.containers import Container
from workers.coordination.clock import lease_clock
from workers.coordination.grants import Grant, Refusal
from workers.coordination.leases import TrialLeases
from workers.coordination.studies import Studies
from workers.coordination.trial_output import Attempt
from workers.logs import get_logger
from workers.processes.beat import ProcessBeat
from workers.processes.registry import ProcessRecord
from workers.protocol.errors import PackageError, StudyNotKnownError, UnsealedError
from workers.protocol.messages import RunTrial
from workers.protocol.spec import StudySpec
from workers.settings import Settings
from workers.trials.attempts import Attempts, Claimed
from workers.trials.hinted_trials import HintedTrials
from workers.trials.known_specs import KnownSpec, KnownSpecs
from workers.trials.outcomes import Outcome
from workers.trials.passing_on import PassingOn
from workers.trials.shipped_code import ShippedCode
from workers.trials.slot import AT_NO_TRIAL, Slot

log = get_logger(__name__)


class TrialRunner:
    """Runs trials one after the other, with the managers of this process; beats while open.

    Args:
        client: The fleet's Redis.
        redis_url: The same, for hints.
        settings: This worker's.
        container: The managers of this process.
        record: This process's entry in the registry.
        drain_file: A file whose existence means that this worker shuts down.
        on_error: Told of what an objective raised, before it is judged.
        printing: A context in which what is printed is an attempt's, where that is kept.
    """

    def __init__(
        self,
        *,
        client: redis.Redis,
        redis_url: str,
        settings: Settings,
        container: Container,
        record: ProcessRecord,
        drain_file: str,
        on_error: Callable[[BaseException], None] = lambda _: None,
        printing: Callable[[Attempt], AbstractContextManager[None]] | None = None,
    ) -> None:
        self._settings = settings
        self._slot = slot = Slot.of(client, redis_url, settings, container, record, drain_file)
        self._health = slot.health
        self._specs = KnownSpecs(slot.studies)
        self._others = PassingOn(
            Studies(client),
            slot.hints,
            slot.health,
            slot.cuda,
            slot.code,
            slot.streak,
            slot.refusals,
            slot.drain,
            settings.times.beat,
        )
        self._shipped = ShippedCode(client, settings)
        self._attempts = Attempts(slot, on_error, printing)
        self._beat = ProcessBeat(record, settings.times.beat)

    def __enter__(self) -> Self:
        self._beat.start()
        self._attempts.__enter__()
        self._health.refusal()  # shown from the start
        return self

    def __exit__(self, *_: object) -> None:
        self._attempts.__exit__()
        self._beat.stop()
        self._slot.hints.close()

    def run(self, hint: RunTrial) -> Outcome:
        """Run the hinted trials, those that this process is granted."""
        trials = HintedTrials(hint, self._slot.hints, self._settings.seal)
        try:
            with self._slot.drain.set_by_sigterm():
                while (each := trials.take()) is not None:
                    outcome = self._run_one(each, trials)
                    if outcome is not Outcome.ENDED:
                        return self._stop(outcome, each, trials)
                return Outcome.ENDED
        except redis.RedisError as error:
            # the lease runs out by itself and the reaper takes over
            log.warning("redis_lost", error=str(error))
            if isinstance(error, redis.exceptions.NoPermissionError):
                self._others.pause()  # the message would be here again at once
            return Outcome.GOES_BACK

    def _run_one(self, hint: RunTrial, trials: HintedTrials) -> Outcome:
        structlog.contextvars.bind_contextvars(study=hint.study, trial=hint.number)
        try:
            if self._health.refusal() is None:
                return self._claim_and_run(hint, trials)
            self._hand_on(hint, trials)
            return self._others.sit_out(hint)
        finally:
            structlog.contextvars.unbind_contextvars("study", "trial", "attempt")

    def _stop(self, outcome: Outcome, hint: RunTrial, trials: HintedTrials) -> Outcome:
        """End with a message some of whose trials are left, unless it goes back with them."""
        if not outcome.goes_back:
            self._hand_on(hint, trials)
        return outcome

    def _hand_on(self, hint: RunTrial, trials: HintedTrials) -> None:
        """Announce what is left of a message, if that can be; the orchestrator does, too, later."""
        if not trials.are_left:
            return
        try:
            trials.hand_on(self._others.queue_of(hint))
        except StudyNotKnownError:
            log.warning("unknown_study")
        except redis.RedisError as error:  # what becomes of this process does not hang on it
            log.warning("hints_not_handed_on", error=str(error))

    def _claim_and_run(self, hint: RunTrial, trials: HintedTrials) -> Outcome:
        if self._slot.drain.is_set():
            return Outcome.GOES_BACK
        leases = self._slot.studies.leases(hint.study, hint.epoch)
        try:
            spec, sha1 = self._spec_for(hint)
            hint.check(self._settings.seal)
            leases = leases.trusted(hint.number, spec.work())
            root = self._shipped.root_of(spec)
        except StudyNotKnownError:
            log.warning("unknown_study")
            return Outcome.ENDED
        except (UnsealedError, PackageError, OSError) as error:
            self._specs.forget(hint.study)  # it may be another one by now
            return self._others.leave_refused(leases, hint, str(error), trials)
        if not self._slot.refusals.is_lacking(spec):
            self._slot.refusals.accept(hint.study)
        left_as = self._others.leave(leases, spec, hint, trials)
        if left_as is not None:
            return left_as
        self._attempts.wake()
        sent_at = lease_clock()
        grant = self._claim(leases, spec, sha1, hint.number)
        if isinstance(grant, Refusal):
            return self._refused(grant, leases, spec, hint, trials)
        self._show_claimed(spec, hint.number, grant)
        return self._attempts.run(Claimed(spec, leases, grant, hint, trials, root, sent_at))

    def _show_claimed(self, spec: StudySpec, number: int, grant: Grant) -> None:
        structlog.contextvars.bind_contextvars(attempt=grant.attempt)
        record = self._slot.record
        write = record.note if grant.is_noted else record.update
        write(study=spec.name, trial=number, token=grant.token, attempt=grant.attempt)
        log.debug("claimed", token=grant.token)

    def _spec_for(self, hint: RunTrial) -> KnownSpec:
        """The specification of a hinted trial's study; the claim tells if it is an old one.

        Raises:
            StudyNotKnownError: There is no such study.
        """
        known = self._specs.get(hint.study)
        if known is None or self._may_leave(known.spec, hint):
            return self._specs.read(hint.study)  # by an old one, it might be left for ever
        return known

    def _may_leave(self, spec: StudySpec, hint: RunTrial) -> bool:
        has_failed_here = self._slot.streak.has(hint.study, hint.number)
        return has_failed_here or self._slot.code.is_other(spec)

    def _claim(
        self, leases: TrialLeases, spec: StudySpec, sha1: str, number: int
    ) -> Grant | Refusal:
        """Ask for a trial; one that was lost on this device, only if it can go to no other."""
        claim = partial(
            leases.claim,
            number,
            str(self._slot.record.identity),
            self._settings.times.lease,
            device=self._slot.record.device,
            spec_sha1=sha1,
            is_assigned=self._slot.record.is_registered,
        )
        grant = claim()
        if isinstance(grant, Grant) or grant.reason != "ELSEWHERE":
            return grant
        record = leases.record(number)
        lost_on = () if record is None else record.lost_on
        if self._health.has_other(spec.resources.queue, lost_on):
            return grant
        return claim(insists=True)

    def _refused(
        self,
        refusal: Refusal,
        leases: TrialLeases,
        spec: StudySpec,
        hint: RunTrial,
        trials: HintedTrials,
    ) -> Outcome:
        log.debug("not_claimed", reason=refusal.reason, retry_ms=refusal.retry_ms)
        if refusal.reason == "RESPEC":
            self._specs.forget(hint.study)
            return self._claim_and_run(hint, trials)
        if refusal.reason == "NOT_YET":
            self._others.announce(spec.resources.queue, hint, refusal.retry_ms / 1000)
        if refusal.reason == "ALTERED":  # it was granted, and given back
            self._slot.record.update(**AT_NO_TRIAL)
        if refusal.reason in {"ELSEWHERE", "ALTERED"}:
            self._others.pass_on(leases, spec.resources.queue, hint, trials)
        return Outcome.ENDED
