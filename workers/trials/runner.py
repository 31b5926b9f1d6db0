"""Runs one hinted trial in this pool process: claim, objective, commit; whatever happens, one end.

Invariant: every way out of an objective ends in exactly one of commit, fail, release, or silence
(when the lease is lost), and in a finished W&B run.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from types import FrameType
from typing import Any, Final, Self

import optuna
import redis
import structlog

from workers.containers import Container
from workers.coordination.clock import lease_clock
from workers.coordination.hints import Hints
from workers.coordination.leases import Refusal, TrialLeases
from workers.coordination.outbox import Outbox, OutboxEntry
from workers.coordination.process_beat import ProcessBeat
from workers.coordination.process_registry import ProcessRecord
from workers.coordination.studies import Studies
from workers.logs import get_logger
from workers.managers import DirectoryManager, TensorManager, WandbManager
from workers.protocol.errors import (
    DrainRequested,
    InvalidInputError,
    LeaseLost,
    ObjectiveError,
    TrialCancelled,
)
from workers.protocol.messages import Result, RunTrial
from workers.protocol.spec import StudySpec
from workers.protocol.states import TrialState
from workers.settings import Settings
from workers.trials.checkpoints import CheckpointStore
from workers.trials.handle import FleetTrial
from workers.trials.held_lease import HeldLease
from workers.trials.objectives import call_objective, load_objective, read_values

log = get_logger(__name__)

#: How much of an error's text travels with a failure.
_ERROR_CHARACTERS: Final = 2000


class Outcome(Enum):
    """What becomes of the Celery message."""

    ENDED = "ended"
    GOES_BACK = "goes back"

    @property
    def goes_back(self) -> bool:
        """Whether another worker should get the message."""
        return self is Outcome.GOES_BACK


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
        self._studies = Studies(client)
        self._hints = Hints(redis_url)
        self._checkpoints = CheckpointStore(container.get(DirectoryManager).checkpoints)
        self._outbox = Outbox(settings.home)
        self._beat = ProcessBeat(record, settings.times.beat)
        self._num_trials = 0
        self._is_terminated = False

    def __enter__(self) -> Self:
        self._beat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._beat.stop()
        self._hints.close()

    def run(self, hint: RunTrial) -> Outcome:
        """Run the hinted trial, if this process is granted it."""
        structlog.contextvars.bind_contextvars(study=hint.study, trial=hint.number)
        try:
            with self._drained_by_sigterm():
                return self._claim_and_run(hint)
        except redis.RedisError as error:
            # the lease runs out by itself and the reaper takes over
            log.warning("redis_lost", error=str(error))
            return Outcome.GOES_BACK
        finally:
            structlog.contextvars.unbind_contextvars("study", "trial", "attempt")

    def _claim_and_run(self, hint: RunTrial) -> Outcome:
        if self._is_draining():
            return Outcome.GOES_BACK
        if not self._studies.exists(hint.study):
            log.warning("unknown_study")
            return Outcome.ENDED
        spec = self._studies.spec(hint.study)
        leases = TrialLeases(self._client, hint.study, hint.epoch)
        sent_at = lease_clock()
        grant = leases.claim(hint.number, str(self._record.identity), self._settings.times.lease)
        if isinstance(grant, Refusal):
            return self._refused(grant, spec, hint)
        structlog.contextvars.bind_contextvars(attempt=grant.attempt)
        self._record.update(study=spec.name, trial=hint.number, token=grant.token)
        held = HeldLease(
            leases,
            hint.number,
            grant,
            sent_at=sent_at,
            times=self._settings.times,
            is_draining=self._is_draining,
        )
        held.progress_timeout = spec.progress_timeout * self._settings.time_scale
        try:
            outcome = self._hold(spec, held, hint, sent_at)
            if held.fell_silent:
                self._make_good(held, spec, hint)
            return outcome
        finally:
            self._num_trials += 1
            self._record.update(study=None, trial=None, token=None)
            self._container.get(TensorManager).clear_memory()

    @contextmanager
    def _drained_by_sigterm(self) -> Iterator[None]:
        """Take a SIGTERM that is meant for this process alone, or for all, as a drain.

        Celery's own handler would throw `SystemExit` into the training at once, wherever it is.
        It has its way when the trial has been given back, or with a second signal.
        """
        before = signal.getsignal(signal.SIGTERM)

        def drain(number: int, frame: FrameType | None) -> None:
            if self._is_terminated and callable(before):
                before(number, frame)
            self._is_terminated = True

        signal.signal(signal.SIGTERM, drain)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
            if self._is_terminated:
                signal.raise_signal(signal.SIGTERM)

    def _make_good(self, held: HeldLease, spec: StudySpec, hint: RunTrial) -> None:
        """Wait for a Redis that was away for too long, and tell it what became of the trial.

        If it has a result, that; else that it is free: it would wait for its lease's end, and
        count a failure that is not its own. Nothing else could be run meanwhile.
        """
        result = self._outbox.find(spec.name, held.number, held.token)
        while not self._is_draining():
            try:
                if result is not None:
                    status = self._outbox.commit(result, held.leases)
                    log.info("committed_late", status=status)
                elif held.leases.release(held.number, held.token):
                    log.info("given_back")
                    self._announce(spec, hint, 0.0)
            except redis.RedisError:
                time.sleep(self._settings.times.beat / 10)
            else:
                return

    def _refused(self, refusal: Refusal, spec: StudySpec, hint: RunTrial) -> Outcome:
        log.info("not_claimed", reason=refusal.reason, retry_ms=refusal.retry_ms)
        if refusal.reason == "NOT_YET":
            self._announce(spec, hint, refusal.retry_ms / 1000)
        return Outcome.ENDED

    def _hold(self, spec: StudySpec, held: HeldLease, hint: RunTrial, sent_at: float) -> Outcome:
        log.info("claimed", token=held.token)
        with held:
            trial = self._handle(spec, held, sent_at)
            attempt = _Attempt(trial, held, sent_at)
            exit_code = 1
            try:
                state, result = attempt.train(self._container, self._settings.objectives)
                exit_code = 0 if state in {TrialState.COMPLETE, TrialState.PRUNED} else 1
                return self._commit(attempt, state, result)
            except DrainRequested:
                return self._release(held)
            except LeaseLost as error:
                log.warning("lost", reason=str(error))
                return Outcome.ENDED
            except BaseException as error:  # noqa: BLE001 - MemoryError would end the worker
                return self._fail(attempt, hint, error)
            finally:
                self._start_wandb_run(trial)
                self._container.get(WandbManager).finish(exit_code)

    def _handle(self, spec: StudySpec, held: HeldLease, sent_at: float) -> FleetTrial:
        directory = self._container.get(DirectoryManager).trial_directory(spec.name, held.number)

        def note_first_step() -> None:
            log.info(
                "first_training_step",
                seconds=round(lease_clock() - sent_at, 4),
                warm=self._num_trials > 0,
            )
            # not before: its start would compete with the trial's for the interpreter
            self._start_wandb_run(trial)

        trial = FleetTrial(
            spec,
            held,
            self._studies,
            self._checkpoints,
            directory / f"attempt-{held.token}",
            self._settings.times.verdict,
            note_first_step,
        )
        return trial

    def _start_wandb_run(self, trial: FleetTrial) -> None:
        wandb = self._container.get(WandbManager)
        wandb.start(trial.study_name, trial.number, trial.params, trial.attempt)

    def _commit(self, attempt: _Attempt, state: TrialState, result: Result) -> Outcome:
        held, trial = attempt.held, attempt.trial
        entry = OutboxEntry(
            study=trial.study_name,
            number=held.number,
            epoch=held.leases.epoch,
            token=held.token,
            state=state,
            result=result,
            owner=self._record.identity,
            files=trial.result_directory,
        )
        try:
            # from here on the result survives this process, and a Redis that is away
            self._outbox.write(entry)
        except OSError as error:
            log.warning("outbox_not_written", error=str(error), hint="make room on the disk")
        status = held.patiently(lambda: self._outbox.commit(entry, held.leases))
        log.info(
            "ended",
            state=state.value,
            status=status,
            values=result.values,
            error=result.error,
            busy_seconds=round(result.busy_seconds, 3),
        )
        if status != "LOST":
            self._checkpoints.remove(trial.study_name, trial.number)
        return Outcome.ENDED

    def _fail(self, attempt: _Attempt, hint: RunTrial, error: BaseException) -> Outcome:
        held, spec = attempt.held, attempt.trial.spec
        if not isinstance(error, Exception) and self._is_draining():
            # the second signal: the training ends where it is
            return self._release(held)
        log.error("attempt_failed", exc_info=error)
        result = attempt.result(error=f"{type(error).__name__}: {error}"[:_ERROR_CHARACTERS])
        backoff = self._settings.times.backoff
        shutil.rmtree(attempt.trial.result_directory, ignore_errors=True)
        try:
            ended = held.patiently(
                lambda: held.leases.fail(
                    held.number, held.token, result, spec.max_failures, backoff
                )
            )
        except LeaseLost as lost:
            log.warning("lost", reason=str(lost))
            return Outcome.ENDED
        if ended != "DEAD":  # LOST, too, where only the answer to the first call was lost
            self._announce(spec, hint, backoff * 2**held.grant.record.failures)
        return Outcome.ENDED

    def _release(self, held: HeldLease) -> Outcome:
        try:
            released = held.patiently(lambda: held.leases.release(held.number, held.token))
        except LeaseLost as error:
            log.warning("lost", reason=str(error))
        else:
            log.info("released", released=released)
        return Outcome.GOES_BACK

    def _announce(self, spec: StudySpec, hint: RunTrial, delay_seconds: float) -> None:
        self._hints.send(
            spec.name, hint.number, hint.epoch, spec.resources.queue, delay_seconds=delay_seconds
        )

    def _is_draining(self) -> bool:
        # asked at every training step
        return self._is_terminated or os.path.exists(self._drain_file)  # noqa: PTH110


class _Attempt:
    """One run of the objective, from its start to what it came to."""

    def __init__(self, trial: FleetTrial, held: HeldLease, started_at: float) -> None:
        self.trial = trial
        self.held = held
        self._started_at = started_at

    def train(self, container: Container, allowed: tuple[str, ...]) -> tuple[TrialState, Result]:
        """Call the objective; what it returned, or how it ended itself.

        Raises:
            TrialInterrupt: It was ended from outside.
            BaseException: Whatever the objective raised.
        """
        try:
            objective = load_objective(self.trial.spec.objective, allowed)
            returned = call_objective(objective, self.trial, container)
            return TrialState.COMPLETE, self.result(read_values(returned, self.trial.spec))
        except optuna.TrialPruned:
            value = self.trial.last_value
            return TrialState.PRUNED, self.result(None if value is None else [value])
        except (ObjectiveError, InvalidInputError) as error:
            # the same trial would break in the same way again
            return TrialState.FAILED, self.result(error=str(error)[:_ERROR_CHARACTERS])
        except TrialCancelled as error:
            return TrialState.CANCELLED, self.result(error=str(error))

    def result(self, values: list[float] | None = None, error: str | None = None) -> Result:
        """What this attempt came to, with what it attached to the trial."""
        attrs: dict[str, Any] = self.trial.user_attrs
        return Result(
            values=values,
            user_attrs=attrs,
            constraints=self.trial.constraints,
            error=error,
            busy_seconds=lease_clock() - self._started_at,
        )
