"""Runs one hinted trial in this pool process: claims it, calls its objective, has it end.

Invariant: every way out of an objective is exactly one end of the attempt (`ending.py`), and a
finished W&B run.
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self

import optuna
import redis
import structlog

from workers.containers import Container
from workers.coordination.clock import lease_clock
from workers.coordination.grants import Grant, Refusal
from workers.coordination.hints import Hints
from workers.coordination.leases import TrialLeases
from workers.coordination.studies import Studies
from workers.disk.checkpoints import CheckpointStore
from workers.disk.object_store import ObjectStore
from workers.disk.outbox import Outbox
from workers.disk.uploads import Uploads
from workers.logs import get_logger
from workers.managers import CUDAManager, DirectoryManager, TensorManager, WandbManager
from workers.processes.beat import ProcessBeat
from workers.processes.registry import ProcessRecord
from workers.protocol.errors import (
    DrainRequested,
    FleetError,
    InvalidInputError,
    LeaseLost,
    ObjectiveError,
    ObjectiveNotLoadedError,
    PackageError,
    StudyNotKnownError,
    TransientError,
    TrialCancelled,
    TrialTimedOut,
    UnfitStudyError,
    UnsealedError,
)
from workers.protocol.messages import RunTrial
from workers.protocol.plain import describe_error
from workers.protocol.spec import StudySpec
from workers.protocol.states import Charge, TrialState
from workers.settings import Settings
from workers.trials.code_that_ran import CodeThatRan
from workers.trials.cuda_errors import CudaTrouble, cuda_trouble
from workers.trials.ending import AttemptEnd, Outcome
from workers.trials.failure_streak import FailureStreak
from workers.trials.handle import FleetTrial
from workers.trials.held_lease import HeldLease
from workers.trials.known_specs import KnownSpec, KnownSpecs
from workers.trials.lease_keeper import LeaseKeeper
from workers.trials.objective_modules import ObjectiveModules, StaleExtensionError
from workers.trials.objectives import call_objective, load_objective
from workers.trials.out_of_memory import ran_out_of_memory
from workers.trials.preparation import Preparation
from workers.trials.refused_studies import RefusedStudies
from workers.trials.returned import read_values
from workers.trials.shipped_code import ShippedCode
from workers.trials.slot_health import SlotHealth
from workers.trials.surroundings import Surroundings

log = get_logger(__name__)

#: For how many beats a process waits that cannot, or should not, run what there is, before a fresh
#: one takes its place: 10 minutes.
_PATIENCE_BEATS: Final = 60


#: What the record of this process says between trials.
_AT_NO_TRIAL: Final = {"study": None, "trial": None, "token": None, "activity": None}


class TrialRunner:
    """Runs trials one after the other, with the managers of this process; beats while open.

    Args:
        client: The fleet's Redis.
        redis_url: The same, for hints.
        settings: This worker's.
        container: The managers of this process.
        record: This process's entry in the registry.
        drain_file: A file whose existence means that this worker shuts down.
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
    ) -> None:
        self._client = client
        self._settings = settings
        self._container = container
        self._record = record
        self._drain_file = drain_file
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
        self._modules = ObjectiveModules()
        self._cuda = container.get(CUDAManager)
        self._health = SlotHealth(client, settings.times, record, self._cuda)
        self._streak = FailureStreak(self._studies)
        self._code = CodeThatRan(record)
        self._refusals = RefusedStudies(record)
        self._shipped = ShippedCode(client, settings)
        #: where the code lies that came with the study at hand
        self._root: Path | None = None
        #: studies whose objective this process has imported
        self._loaded: set[str] = set()
        self._num_trials = 0
        #: how this process was before its first trial
        self._surroundings: Surroundings | None = None
        self._is_terminated = False
        #: Celery's, while a trial runs
        self._outer_sigterm: Any = None
        #: one object, which is told from the handlers that an objective sets
        self._drain_at_sigterm = self._on_sigterm

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
        """Run the hinted trial, if this process is granted it."""
        structlog.contextvars.bind_contextvars(study=hint.study, trial=hint.number)
        try:
            with self._drained_by_sigterm():
                if self._health.refusal() is not None:
                    return self._refuse(hint)
                return self._claim_and_run(hint)
        except redis.RedisError as error:
            # the lease runs out by itself and the reaper takes over
            log.warning("redis_lost", error=str(error))
            if isinstance(error, redis.exceptions.NoPermissionError):
                self._pause()  # the message would be here again at once
            return Outcome.GOES_BACK
        finally:
            structlog.contextvars.unbind_contextvars("study", "trial", "attempt")

    def _refuse(self, hint: RunTrial) -> Outcome:
        """Leave a trial to the other slots, and take no message for as long as this one refuses.

        One whose CUDA does not work ends after a while: a fresh process looks again.
        """
        if self._studies.exists(hint.study):
            self._announce(self._queue_of(hint), hint, 0.0)
        until = lease_clock() + _PATIENCE_BEATS * self._settings.times.beat
        while not self._is_draining() and self._health.refusal() is not None:
            if self._cuda.trouble is not None and lease_clock() > until:
                return Outcome.CUDA_BROKEN
            self._pause()
        return Outcome.ENDED

    def _pause(self) -> None:
        """Wait for a beat, or for a drain."""
        until = lease_clock() + self._settings.times.beat
        while lease_clock() < until and not self._is_draining():
            time.sleep(self._settings.times.beat / 20)

    def _claim_and_run(self, hint: RunTrial) -> Outcome:
        if self._is_draining():
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
            return self._leave_refused(leases, hint, str(error))
        self._refusals.accept(hint.study)
        left_as = self._leave_to_others(leases, spec, hint)
        if left_as is not None:
            return left_as
        sent_at = lease_clock()
        grant = self._claim(leases, spec, sha1, hint.number)
        if isinstance(grant, Refusal):
            return self._refused(grant, leases, spec, hint)
        structlog.contextvars.bind_contextvars(attempt=grant.attempt)
        write = self._record.note if grant.is_noted else self._record.update
        write(study=spec.name, trial=hint.number, token=grant.token)
        log.debug("claimed", token=grant.token)
        held = HeldLease(
            leases,
            hint.number,
            grant,
            sent_at=sent_at,
            times=self._settings.times,
            keeper=self._keeper,
            is_draining=self._is_draining,
            leave_word=self._leave_word,
        )
        held.progress_timeout = spec.progress_timeout * self._settings.time_scale
        if spec.trial_timeout is not None:
            held.time_out(spec.trial_timeout, self._settings.time_scale)
        try:
            return self._run_attempt(spec, held, hint, sent_at)
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

    def _leave_to_others(
        self, leases: TrialLeases, spec: StudySpec, hint: RunTrial
    ) -> Outcome | None:
        """Leave a trial to another process, if this one is not to run it."""
        if self._code.differs(spec) and spec.code.must_match:
            return self._leave_other_code(leases, spec, hint)
        return self._leave_failed_here(leases, spec, hint)

    def _leave_refused(self, leases: TrialLeases, hint: RunTrial, reason: str) -> Outcome:
        """Leave a trial to processes that take it; where there is none, it waits."""
        self._refusals.refuse(hint.study, reason)
        queue = self._queue_of(hint)
        if leases.is_queued(hint.number) and self._health.has_other_that_takes(queue, hint.study):
            self._pass_on(leases, queue, hint)
        return Outcome.ENDED

    def _queue_of(self, hint: RunTrial) -> str:
        """Where others take the trial from; whoever wrote that."""
        return Studies(self._client).spec(hint.study).resources.queue

    def _leave_other_code(
        self, leases: TrialLeases, spec: StudySpec, hint: RunTrial
    ) -> Outcome | None:
        """Leave a trial to processes with the submitter's code; where there is none, it waits."""
        queue = spec.resources.queue
        if leases.is_queued(hint.number) and self._health.has_other_with_code(queue, spec.name):
            self._pass_on(leases, queue, hint)
        return Outcome.ENDED

    def _leave_failed_here(
        self, leases: TrialLeases, spec: StudySpec, hint: RunTrial
    ) -> Outcome | None:
        """Leave a trial that failed in this process to another one, if there is one.

        Until a trial succeeds here, nobody knows whether the objective or the process is to blame.
        Where the others are busy for long, a fresh process takes this one's place.
        """
        seconds = self._streak.seconds_since(hint.study, hint.number)
        if seconds is None or not self._health.has_other(spec.resources.queue):
            return None
        if not leases.is_queued(hint.number):
            return None
        self._pass_on(leases, spec.resources.queue, hint)
        if seconds < _PATIENCE_BEATS * self._settings.times.beat:
            return Outcome.ENDED
        log.warning("process_ends", reason="its trial failed here, and all others are busy")
        return Outcome.SICK

    def _pass_on(self, leases: TrialLeases, queue: str, hint: RunTrial) -> None:
        """Announce a trial again, for others; stay busy for a moment, or this process gets it."""
        pause = leases.pause_seconds(hint.number)
        self._announce(queue, hint, pause)
        if not pause:
            beat = self._settings.times.beat
            until = lease_clock() + beat / 10
            while lease_clock() < until and leases.is_queued(hint.number):
                time.sleep(beat / 200)

    def _claim(
        self, leases: TrialLeases, spec: StudySpec, sha1: str, number: int
    ) -> Grant | Refusal:
        """Ask for a trial; one that was lost on this device, only if it can go to no other."""
        claim = partial(
            leases.claim,
            number,
            str(self._record.identity),
            self._settings.times.lease,
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

    @contextmanager
    def _drained_by_sigterm(self) -> Iterator[None]:
        """Take a SIGTERM that is meant for this process alone, or for all, as a drain.

        Celery's own handler would throw `SystemExit` into the training at once, wherever it is.
        It has its way when the trial has been given back, or with a second signal.
        """
        before = signal.getsignal(signal.SIGTERM)
        self._outer_sigterm = before
        signal.signal(signal.SIGTERM, self._drain_at_sigterm)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
            if self._is_terminated:
                signal.raise_signal(signal.SIGTERM)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        if self._is_terminated and callable(self._outer_sigterm):
            self._outer_sigterm(number, frame)
        self._is_terminated = True

    def _refused(
        self, refusal: Refusal, leases: TrialLeases, spec: StudySpec, hint: RunTrial
    ) -> Outcome:
        log.debug("not_claimed", reason=refusal.reason, retry_ms=refusal.retry_ms)
        if refusal.reason == "RESPEC":
            self._specs.forget(hint.study)
            return self._claim_and_run(hint)
        if refusal.reason == "NOT_YET":
            self._announce(spec.resources.queue, hint, refusal.retry_ms / 1000)
        if refusal.reason == "ALTERED":  # it was granted, and given back
            self._record.update(**_AT_NO_TRIAL)
        if refusal.reason in {"ELSEWHERE", "ALTERED"}:
            self._pass_on(leases, spec.resources.queue, hint)
        return Outcome.ENDED

    def _run_attempt(
        self, spec: StudySpec, held: HeldLease, hint: RunTrial, sent_at: float
    ) -> Outcome:
        """Train under the lease; see to the rest without it."""
        trial = self._handle(spec, held, sent_at)
        wandb = self._container.get(WandbManager)
        end = AttemptEnd(
            trial,
            held,
            hint,
            device=self._record.device,
            streak=self._streak,
            started_at=sent_at,
            owner=self._record.identity,
            outbox=self._outbox,
            checkpoints=self._checkpoints,
            hints=self._hints,
            times=self._settings.times,
            code=self._code.facts(spec, self._root),
            is_draining=self._is_draining,
            is_last=lambda: not wandb.has_run,
        )
        held.end_in_place = end.in_place_of_objective
        wandb.start(
            spec.name,
            held.number,
            lambda: trial.params,
            trial.attempt,
            spec.wandb,
            held.grant.record.generation,
        )
        surroundings = self._surroundings = self._surroundings or Surroundings()
        with held:
            self._train(trial, held, end, surroundings)
        try:
            # first: what is to be told and kept does not wait for what an objective left running
            outcome = end.leave()
            lasting = surroundings.restore()
        finally:
            wandb.finish(end.exit_code)
            write = self._record.note if end.has_freed else self._record.update
            write(**_AT_NO_TRIAL)
        self._judge_device(end, held)
        if outcome is Outcome.ENDED and self._cuda.check() is not None:
            log.error("cuda_broken", reason=self._cuda.trouble, hint="a fresh process is started")
            return Outcome.CUDA_BROKEN
        if not lasting or outcome is not Outcome.ENDED:
            return outcome
        log.warning("process_ends", reasons=lasting, hint="a fresh one takes its place")
        return Outcome.ENDS_PROCESS

    def _judge_device(self, end: AttemptEnd, held: HeldLease) -> None:
        """Note what the attempt says for, or against, what it ran on."""
        if end.is_loss:
            self._health.note_loss(held.leases.study, held.number)
        elif end.exit_code == 0:
            self._health.note_success()

    def _train(
        self, trial: FleetTrial, held: HeldLease, end: AttemptEnd, surroundings: Surroundings
    ) -> None:
        """Call the objective, and say how that ended."""
        try:
            with surroundings.watched():
                held.check_time()  # attempts before this one may have used it up
                trial.next_rung.check()  # or may have died when they had reached the rung
                self._seed_module(trial)
                objective = load_objective(
                    trial.spec.objective, self._settings.objectives, self._modules, self._root
                )
                self._loaded.add(trial.study_name)
                self._seed_trial(trial)
                try:
                    returned = call_objective(objective, trial, self._container)
                except BaseException as error:
                    is_verdict = isinstance(error, optuna.TrialPruned)
                    _await_checkpoint(trial, is_needed=not is_verdict or trial.next_rung.is_reached)
                    raise
                else:
                    _await_checkpoint(trial, is_needed=False)
                finally:
                    self._modules.note()  # what it imported in its body, however it ended
            values = read_values(returned, trial.spec)
        except StaleExtensionError as error:
            surroundings.spoil(str(error))
            end.hand_over()
        except TrialCancelled:
            end.cancel()
        except TrialTimedOut:
            end.time_out()
        except DrainRequested:
            end.release()
        except LeaseLost as error:
            end.fall_silent(error)
        except BaseException as error:  # noqa: BLE001 - MemoryError would end the worker
            self._end_with(error, trial, end)
        else:
            end.commit(TrialState.COMPLETE, values)

    def _end_with(self, error: BaseException, trial: FleetTrial, end: AttemptEnd) -> None:
        """Say how an attempt ended whose objective raised something."""
        trouble = cuda_trouble(error)
        if trouble is None and self._cuda.check() is not None:
            trouble = CudaTrouble("CUDA error", str(self._cuda.trouble))
        if trouble is not None:  # whatever the objective made of it
            self._cuda.note_broken(trouble.kind)
            end.lose(trouble, error, is_suspect=self._health.is_suspect())
        elif isinstance(error, optuna.TrialPruned):
            end.prune(error)
        elif isinstance(error, ObjectiveNotLoadedError) and self._health.has_other(
            trial.spec.resources.queue
        ):
            # the worker may lack something, or this process be broken: another one is to say
            end.fail(error, may_be_sick=trial.study_name in self._loaded)
        elif isinstance(error, (ObjectiveError, InvalidInputError)):
            self._give_up(trial, end, error)
        elif isinstance(error, TransientError):
            end.give_back(error)
        elif ran_out_of_memory(error):
            end.run_out_of_memory(error)
        else:
            end.fail(error)

    def _give_up(self, trial: FleetTrial, end: AttemptEnd, error: FleetError) -> None:
        """End a trial as FAILED; and its study, if no other could be trained."""
        if isinstance(error, UnfitStudyError):
            log.error("study_unfit", hint="no trial of it can be trained; no further one begins")
            with suppress(redis.RedisError):  # the next trial asks for it
                self._studies.ask_to_stop(trial.study_name)
        end.refuse(error)

    def _seed_module(self, trial: FleetTrial) -> None:
        """Have what a module draws at its top be the same in each process of a seeded study."""
        seed = trial.spec.sampler.seed
        if seed is not None:
            self._cuda.seed(seed % 2**32)

    def _seed_trial(self, trial: FleetTrial) -> None:
        """Have each trial draw its own numbers: of a seeded study, the same in each attempt.

        Left as they are put back after each, the generators would give every trial the same.
        """
        is_seeded = trial.spec.sampler.seed is not None
        seed = trial.seed if is_seeded else secrets.randbits(32)
        self._cuda.seed(seed)

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
            self._settings.times.verdict,
            note_first_step,
            Preparation(self._show_activity, self._settings.times.beat / 2),
            self._settings.storage_of(spec.name),
            self._container.get(WandbManager),
            self._settings.slots or 1,
        )

    def _show_activity(self, activity: str | None) -> None:
        with suppress(redis.RedisError):  # the lease tells that it is away
            self._record.update(activity=activity)

    def _announce(self, queue: str, hint: RunTrial, delay_seconds: float) -> None:
        self._hints.pass_on(hint, queue, delay_seconds)

    def _is_draining(self) -> bool:
        # asked at every training step
        return self._is_terminated or os.path.exists(self._drain_file)  # noqa: PTH110


def _await_checkpoint(trial: FleetTrial, *, is_needed: bool) -> None:
    """Wait until what the objective saved last is on disk.

    Args:
        trial: What the objective was given.
        is_needed: Whether another attempt may go on from it; where not, the trial has its result,
            whatever went wrong with the checkpoint.

    Raises:
        LeaseLost: Somebody else may run the trial now.
        Exception: What else went wrong with one that is needed.
    """
    try:
        trial.await_checkpoint()
    except LeaseLost:
        raise
    except Exception as error:
        if is_needed:
            raise
        log.warning("checkpoint_not_saved", error=describe_error(error, 500))
