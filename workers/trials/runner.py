"""Runs one hinted trial in this pool process: claims it, calls its objective, has it end.

Invariant: of a trial that was claimed the attempt comes to an end, its W&B run is finished, and
this process is as it was before, or ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Final, Self

import redis
import structlog

from workers.containers import Container
from workers.coordination.clock import lease_clock
from workers.coordination.grants import Grant, Refusal
from workers.coordination.hints import Hints
from workers.coordination.leases import TrialLeases
from workers.coordination.studies import Studies
from workers.coordination.trial_output import Attempt
from workers.disk.checkpoints import CheckpointStore
from workers.disk.object_store import ObjectStore
from workers.disk.outbox import Outbox
from workers.disk.uploads import Uploads
from workers.logs import get_logger
from workers.managers import CUDAManager, DirectoryManager, TensorManager, WandbManager
from workers.processes.beat import ProcessBeat
from workers.processes.registry import ProcessRecord
from workers.protocol.errors import PackageError, StudyNotKnownError, UnsealedError
from workers.protocol.messages import RunTrial
from workers.protocol.spec import StudySpec
from workers.protocol.states import Charge
from workers.settings import Settings
from workers.trials.code_that_ran import CodeThatRan
from workers.trials.drain_signal import DrainSignal
from workers.trials.ending import AttemptEnd
from workers.trials.failure_streak import FailureStreak
from workers.trials.handle import FleetTrial
from workers.trials.held_lease import YOUNG_SECONDS, HeldLease
from workers.trials.hinted_trials import HintedTrials
from workers.trials.known_specs import KnownSpec, KnownSpecs
from workers.trials.lease_keeper import LeaseKeeper
from workers.trials.objective_calls import ObjectiveCalls
from workers.trials.outcomes import Outcome
from workers.trials.passing_on import PassingOn
from workers.trials.preparation import Preparation
from workers.trials.raised import ErrorJudge
from workers.trials.refused_studies import RefusedStudies
from workers.trials.shipped_code import ShippedCode
from workers.trials.slot_health import SlotHealth
from workers.trials.surroundings import Surroundings

log = get_logger(__name__)

#: What the record of this process says between trials.
_AT_NO_TRIAL: Final = {
    "study": None,
    "trial": None,
    "token": None,
    "attempt": None,
    "activity": None,
}


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
        self._printing = printing or (lambda _attempt: nullcontext())
        self._settings = settings
        self._times = settings.times
        self._container = container
        self._record = record
        self._drain = DrainSignal(drain_file)
        self._studies = Studies(client, seal=settings.seal)
        self._specs = KnownSpecs(self._studies)
        self._hints = Hints(redis_url, settings.seal)
        uploads = Uploads(settings.home, has_store=settings.store is not None)
        self._checkpoints = CheckpointStore(
            container.get(DirectoryManager).checkpoints, uploads, ObjectStore.of(settings)
        )
        self._outbox = Outbox(settings.home, uploads)
        self._keeper = LeaseKeeper()
        self._beat = ProcessBeat(record, settings.times.beat)
        self._cuda = container.get(CUDAManager)
        self._wandb = container.get(WandbManager)
        self._health = SlotHealth(client, settings.times, record, self._cuda)
        self._streak = FailureStreak(self._studies)
        self._code = CodeThatRan(record)
        self._refusals = RefusedStudies(record)
        self._others = PassingOn(
            Studies(client),
            self._hints,
            self._health,
            self._cuda,
            self._code,
            self._streak,
            self._refusals,
            self._drain,
            settings.times.beat,
        )
        judge = ErrorJudge(
            record,
            self._cuda,
            self._health,
            self._streak,
            self._studies,
            self._refusals,
            self._drain.is_set,
        )
        self._objectives = ObjectiveCalls(settings, container, judge, on_error)
        self._shipped = ShippedCode(client, settings)
        #: where the code lies that came with the study at hand
        self._root: Path | None = None
        self._num_trials = 0
        #: how this process was before its first trial
        self._surroundings: Surroundings | None = None

    def __enter__(self) -> Self:
        self._beat.start()
        self._keeper.__enter__()
        self._health.refusal()  # shown from the start
        return self

    def __exit__(self, *_: object) -> None:
        self._keeper.__exit__()
        self._beat.stop()
        self._hints.close()

    def run(self, hint: RunTrial) -> Outcome:
        """Run the hinted trials, those that this process is granted."""
        trials = HintedTrials(hint, self._hints, self._settings.seal)
        try:
            with self._drain.set_by_sigterm():
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
        if self._drain.is_set():
            return Outcome.GOES_BACK
        leases = self._studies.leases(hint.study, hint.epoch)
        try:
            spec, sha1 = self._spec_for(hint)
            hint.check(self._settings.seal)
            leases = leases.trusted(hint.number, spec.work())
            self._root = self._shipped.root_of(spec)
        except StudyNotKnownError:
            log.warning("unknown_study")
            return Outcome.ENDED
        except (UnsealedError, PackageError, OSError) as error:
            self._specs.forget(hint.study)  # it may be another one by now
            return self._others.leave_refused(leases, hint, str(error), trials)
        if not self._refusals.is_lacking(spec):
            self._refusals.accept(hint.study)
        left_as = self._others.leave(leases, spec, hint, trials)
        if left_as is not None:
            return left_as
        sent_at = lease_clock()
        grant = self._claim(leases, spec, sha1, hint.number)
        if isinstance(grant, Refusal):
            return self._refused(grant, leases, spec, hint, trials)
        structlog.contextvars.bind_contextvars(attempt=grant.attempt)
        write = self._record.note if grant.is_noted else self._record.update
        write(study=spec.name, trial=hint.number, token=grant.token, attempt=grant.attempt)
        log.debug("claimed", token=grant.token)
        held = HeldLease(
            leases,
            hint.number,
            grant,
            sent_at=sent_at,
            times=self._times,
            keeper=self._keeper,
            is_draining=self._drain.is_set,
            leave_word=self._leave_word,
        )
        held.progress_timeout = spec.progress_timeout * self._settings.time_scale
        if spec.trial_timeout is not None:
            held.time_out(spec.trial_timeout, self._settings.time_scale)
        try:
            return self._run_attempt(spec, held, hint, trials, sent_at)
        finally:
            self._num_trials += 1
            self._container.get(TensorManager).tidy()

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
        has_failed_here = self._streak.seconds_since(hint.study, hint.number) is not None
        return has_failed_here or self._code.is_other(spec)

    def _claim(
        self, leases: TrialLeases, spec: StudySpec, sha1: str, number: int
    ) -> Grant | Refusal:
        """Ask for a trial; one that was lost on this device, only if it can go to no other."""
        claim = partial(
            leases.claim,
            number,
            str(self._record.identity),
            self._times.lease,
            device=self._record.device,
            spec_sha1=sha1,
            is_assigned=self._record.is_registered,
        )
        grant = claim()
        if isinstance(grant, Grant) or grant.reason != "ELSEWHERE":
            return grant
        record = leases.record(number)
        lost_on = () if record is None else record.lost_on
        if self._health.has_other(spec.resources.queue, lost_on):
            return grant
        return claim(insists=True)

    def _leave_word(self, reason: str) -> None:
        """Tell the cleaner why this process ends, in the middle of a trial that stands still."""
        with suppress(redis.RedisError):  # then it is said that the process died
            self._record.update(last_word=reason, charge=Charge.FAILURE.value)

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
            self._record.update(**_AT_NO_TRIAL)
        if refusal.reason in {"ELSEWHERE", "ALTERED"}:
            self._others.pass_on(leases, spec.resources.queue, hint, trials)
        return Outcome.ENDED

    def _run_attempt(
        self,
        spec: StudySpec,
        held: HeldLease,
        hint: RunTrial,
        trials: HintedTrials,
        sent_at: float,
    ) -> Outcome:
        """Train under the lease; see to the rest without it."""
        end = self._end_of(self._handle(spec, held, sent_at), held, hint, sent_at)
        held.end_in_place = end.in_place_of_objective

        def let_others_go_on() -> None:
            trials.hand_on(spec.resources.queue)

        held.ripen(let_others_go_on)
        self._start_wandb(end)
        surroundings = self._surroundings = self._surroundings or Surroundings()
        generation = held.grant.record.generation
        attempt = Attempt(spec.name, held.number, held.grant.attempt, held.token, generation)
        with held, self._printing(attempt):
            self._objectives.call(end, surroundings, self._root)
        # W&B may take as long as it likes to finish it; and what is no short trial may have told
        # of its end only after a while, and leave much behind
        if self._wandb.has_run or lease_clock() - sent_at > YOUNG_SECONDS:
            let_others_go_on()
        outcome, lasting = self._leave(end, surroundings)
        self._judge_device(end)
        return self._fit_for_next(outcome, lasting)

    def _end_of(
        self, trial: FleetTrial, held: HeldLease, hint: RunTrial, sent_at: float
    ) -> AttemptEnd:
        return AttemptEnd(
            trial,
            held,
            hint,
            streak=self._streak,
            started_at=sent_at,
            owner=self._record.identity,
            outbox=self._outbox,
            checkpoints=self._checkpoints,
            hints=self._hints,
            times=self._times,
            code=self._code.facts(trial.spec, self._root),
            is_draining=self._drain.is_set,
            is_last=lambda: not self._wandb.has_run,
        )

    def _start_wandb(self, end: AttemptEnd) -> None:
        trial, held = end.trial, end.held
        self._wandb.start(
            trial.study_name,
            held.number,
            lambda: trial.params,
            trial.attempt,
            trial.spec.wandb,
            held.grant.record.generation,
        )

    def _leave(
        self, end: AttemptEnd, surroundings: Surroundings
    ) -> tuple[Outcome, Collection[str]]:
        """Leave the trial, and put the process back as it was; what of it could not be."""
        try:
            # first: what is to be told and kept does not wait for what an objective left running
            return end.leave(), surroundings.restore()
        finally:
            self._wandb.finish(end.exit_code)
            write = self._record.note if end.has_freed else self._record.update
            write(**_AT_NO_TRIAL)

    def _fit_for_next(self, outcome: Outcome, lasting: Collection[str]) -> Outcome:
        """What becomes of the message, and of this process if it cannot run another trial."""
        if outcome is Outcome.ENDED and self._cuda.check() is not None:
            log.error("cuda_broken", reason=self._cuda.trouble, hint="a fresh process is started")
            return Outcome.CUDA_BROKEN
        if not lasting or outcome is not Outcome.ENDED:
            return outcome
        log.warning("process_ends", reasons=lasting, hint="a fresh one takes its place")
        return Outcome.ENDS_PROCESS

    def _judge_device(self, end: AttemptEnd) -> None:
        """Note what the attempt says for, or against, what it ran on."""
        if end.is_loss:
            self._health.note_loss(end.trial.study_name, end.trial.number)
        elif end.exit_code == 0:
            self._health.note_success()

    def _handle(self, spec: StudySpec, held: HeldLease, sent_at: float) -> FleetTrial:
        directories = self._container.get(DirectoryManager)

        def note_first_step() -> None:
            held.note_first_step()
            log.debug(
                "first_training_step",
                seconds=round(lease_clock() - sent_at, 4),
                warm=self._num_trials > 0,
            )

        return FleetTrial(
            spec,
            held,
            self._studies,
            self._checkpoints,
            directories.draft_directory(spec.name, held.number, held.token),
            self._times.verdict,
            note_first_step,
            Preparation(self._show_activity, self._times.beat / 2),
            self._settings.storage_of(spec.name),
            self._wandb,
            self._settings.slots or 1,
        )

    def _show_activity(self, activity: str | None) -> None:
        with suppress(redis.RedisError):  # the lease tells that it is away
            self._record.update(activity=activity)
