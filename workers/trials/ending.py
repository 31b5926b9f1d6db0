"""How an attempt ends: with a result, a failure, a release, or, its lease lost, in silence.

What is said of it is said while the lease is held. What is tidied up after it is tidied when the
lease has been left: it may take as long as it likes, and is not taken for an objective that goes
on without a lease.

A result survives this process and a Redis that is away: it lies in the outbox before it is
committed, and what Redis was not there to take is told as soon as it is back.

Invariant: an attempt comes to exactly one end, said by one thread: the objective's own, or, where
that does not do what is asked of its study, the one that renews the lease.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import Any, Final

import optuna
import redis

from workers.coordination.clock import lease_clock
from workers.coordination.hints import Hints
from workers.coordination.identity import ProcessIdentity
from workers.disk.checkpoints import CheckpointStore
from workers.disk.outbox import Outbox, OutboxEntry
from workers.logs import get_logger, traceback_of
from workers.passwords import hide
from workers.protocol.errors import (
    DrainRequested,
    FleetError,
    LeaseLost,
    RungReached,
    TransientError,
    TrialCancelled,
    TrialInterrupt,
    TrialTimedOut,
)
from workers.protocol.events import Cause
from workers.protocol.messages import Result, RunTrial
from workers.protocol.plain import describe_error, plain_text
from workers.protocol.states import OUT_OF_MEMORY, Charge, Command, TrialState
from workers.times import Times
from workers.trials.advice import advice_on
from workers.trials.cuda_errors import CudaTrouble
from workers.trials.failure_streak import FailureStreak
from workers.trials.handle import FleetTrial
from workers.trials.held_lease import HeldLease
from workers.trials.last_word import LastWord
from workers.trials.out_of_memory import ran_out_of_memory
from workers.trials.tracebacks import EXITED, fingerprint, objective_traceback

log = get_logger(__name__)

#: For how many beats a trial that another host may go on with waits for the store: 30 s.
_UPLOAD_BEATS: Final = 3

#: How much of an error's text travels with a failure.
_ERROR_CHARACTERS: Final = 2000

#: How much of what a trial waits for travels with it.
_REASON_CHARACTERS: Final = 300

#: The fingerprint of an objective that ran out of memory: how much was missing differs.
_OUT_OF_MEMORY: Final = "out of memory"


class Outcome(Enum):
    """What becomes of the Celery message."""

    ENDED = "ended"
    GOES_BACK = "goes back"
    ENDS_PROCESS = "ends the process"
    """The trial has ended, and this process cannot run another one."""
    CUDA_BROKEN = "CUDA broke the process"
    SICK = "the process is sick"
    """Trials fail in it that succeed elsewhere."""

    @property
    def goes_back(self) -> bool:
        """Whether another worker should get the message."""
        return self is Outcome.GOES_BACK

    @property
    def exit_code(self) -> int | None:
        """What this process is to exit with, if it is to be replaced."""
        return _EXIT_CODES.get(self)


#: The exit codes of pool processes that are replaced: an objective changed it for good; a CUDA
#: error broke it; trials fail in it that succeed elsewhere.
EXIT_REPLACED: Final = 74
EXIT_CUDA_BROKEN: Final = 75
EXIT_SICK: Final = 76

_EXIT_CODES: Final = {
    Outcome.ENDS_PROCESS: EXIT_REPLACED,
    Outcome.CUDA_BROKEN: EXIT_CUDA_BROKEN,
    Outcome.SICK: EXIT_SICK,
}


class AttemptEnd:
    """The end of one attempt: one of `commit`, `fail`, `lose`, `release`..., then `leave`.

    Args:
        trial: What the objective was given.
        held: Its lease.
        hint: The message that brought it here.
        device: What it ran on.
        streak: Failures in a row of this process.
        started_at: `lease_clock()` from when it was claimed.
        owner: This process.
        outbox: Where results lie until they are committed.
        checkpoints: What is dropped when the trial has ended.
        hints: Announces the trial where another attempt is to come.
        times: The protocol's intervals.
        code: What ran, to be recorded with the end.
        is_draining: Whether this worker is shutting down.
        is_last: Whether nothing of the trial is left to be ended after its commit: the record of
            this process names it no more.
    """

    def __init__(
        self,
        trial: FleetTrial,
        held: HeldLease,
        hint: RunTrial,
        *,
        device: str,
        streak: FailureStreak,
        started_at: float,
        owner: ProcessIdentity,
        outbox: Outbox,
        checkpoints: CheckpointStore,
        hints: Hints,
        times: Times,
        code: dict[str, Any],
        is_draining: Callable[[], bool],
        is_last: Callable[[], bool] = lambda: False,
    ) -> None:
        self._trial = trial
        self._held = held
        self._hint = hint
        self._device = device
        self._streak = streak
        self._started_at = started_at
        self._owner = owner
        self._outbox = outbox
        self._checkpoints = checkpoints
        self._hints = hints
        self._times = times
        self._code = code
        self._is_draining = is_draining
        self._is_last = is_last
        #: whether the record of this process names no trial any more
        self.has_freed = False
        self._outcome = Outcome.ENDED
        self._word = LastWord()
        #: whether the attempt was counted as a loss
        self.is_loss = False
        self._entry: OutboxEntry | None = None
        #: whether it was brought to disk, or that could not be done
        self._is_on_disk = False
        #: what Redis answered; None while it has not
        self._status: str | None = None
        self._is_to_be_announced = False
        self._leaves_files = False
        #: 0 for a result, 1 for all else, as a process would end
        self.exit_code = 1

    def commit(
        self,
        state: TrialState,
        values: list[float] | None = None,
        error: str | None = None,
        traceback: str | None = None,
        *,
        is_out_of_memory: bool = False,
        cause: Cause | None = None,
    ) -> None:
        """End the trial for good."""
        self._word.take()
        result = self._result(values, error)
        result.traceback = traceback
        if is_out_of_memory:
            result.constraints[OUT_OF_MEMORY] = 1.0
        held, trial = self._held, self._trial
        if state in {TrialState.COMPLETE, TrialState.PRUNED} and not is_out_of_memory:
            self.exit_code = 0
            self._streak.end()
        self._entry = OutboxEntry(
            study=trial.study_name,
            number=held.number,
            epoch=held.leases.epoch,
            generation=held.grant.record.generation,
            token=held.token,
            state=state,
            result=result,
            owner=self._owner,
            files=trial.result_directory,
        )
        with _disk_may_be_full():
            # from here on the result survives this process, and a Redis that is away
            self._outbox.write(self._entry)
        self._say(partial(self._commit, self._entry, cause))
        log.info(
            "ended",
            state=state.value,
            status=self._status,
            values=values,
            error=error,
            busy_seconds=round(result.busy_seconds, 3),
        )

    def _commit(self, entry: OutboxEntry, cause: Cause | None) -> str:
        held, freed = self._held, self._owner if self._is_last() else None
        try:
            status = held.leases.commit(
                held.number,
                held.token,
                entry.state,
                entry.result,
                cause,
                held.first_step_seconds,
                freed,
            )
        except redis.RedisError:
            if not self._is_on_disk:  # it may take long until Redis is back
                self._is_on_disk = True
                with _disk_may_be_full():
                    self._outbox.bring_to_disk(entry)
            raise
        self.has_freed = freed is not None and status == "OK"
        return status

    def prune(self, error: optuna.TrialPruned) -> None:
        """End the trial as the objective asked, with the last value that it reported."""
        if _is_of(error, RungReached):  # which it took for a verdict
            self.park()
            return
        # to prune what did not fit is an objective's own way to say that it did not
        self._prune(is_out_of_memory=ran_out_of_memory(error))

    def _prune(self, error: str | None = None, *, is_out_of_memory: bool) -> None:
        value = self._trial.last_value
        values = None if value is None else [value]
        self.commit(TrialState.PRUNED, values, error, is_out_of_memory=is_out_of_memory)

    def run_out_of_memory(self, error: BaseException) -> None:
        """Give a trial up that needs more memory than there is: PRUNED, and no point to go near.

        It is tried once more before: what others had left in the memory may be gone by then.
        """
        self._word.take()
        if self._is_draining() or _is_of(error, TrialInterrupt):
            self.fail(error)
            return
        log.warning("out_of_memory", exception=traceback_of(error))
        record, spec = self._held.grant.record, self._trial.spec
        result = self._result(error=f"out of memory: {describe_error(error, _ERROR_CHARACTERS)}")
        result.fingerprint = _OUT_OF_MEMORY
        is_repeated = record.error_fingerprint == _OUT_OF_MEMORY
        if is_repeated or record.failures + 1 >= spec.max_failures:
            self._prune(result.error, is_out_of_memory=True)
        else:
            self._count(result, Charge.FAILURE, cause=Cause.OUT_OF_MEMORY)

    def fail(self, error: BaseException, *, may_be_sick: bool = True) -> None:
        """Count a failure of the attempt; the trial is tried again, or DEAD.

        What goes wrong while this worker shuts down is not counted: the signals that end it reach
        loaders and other processes that the objective started, too.

        Args:
            error: What the objective raised.
            may_be_sick: Whether a fresh process might do better in this one's place.
        """
        self._word.take()
        if _is_of(error, TrialCancelled):
            self.cancel()
            return
        if _is_of(error, TrialTimedOut):
            self.time_out()
            return
        if self._is_draining() or _is_of(error, DrainRequested):
            log.warning("failed_while_draining", error=describe_error(error, _ERROR_CHARACTERS))
            self.release()
            return
        log.error("attempt_failed", exception=traceback_of(error))
        held, spec = self._held, self._trial.spec
        advice = "" if isinstance(error, FleetError) else advice_on(error)
        text = describe_error(error, _ERROR_CHARACTERS - len(advice))
        result = self._result(error=f"{text}{advice}")
        result.fingerprint = fingerprint(error)
        result.traceback = objective_traceback(error)
        is_repeated = result.fingerprint in {EXITED, held.grant.record.error_fingerprint} - {None}
        doubt = self._streak.add(spec.name, held.number, is_repeated=is_repeated)
        if doubt is not None and may_be_sick:
            log.error("process_sick", reason=doubt, hint="a fresh one takes its place")
            self.hand_over(Outcome.SICK)
        elif is_repeated:
            # once more, the same would go wrong in the same way
            error_text, traceback = result.error, result.traceback
            self.commit(
                TrialState.FAILED, error=error_text, traceback=traceback, cause=Cause.FAILED
            )
        else:
            self._count(result, Charge.FAILURE)

    def lose(self, trouble: CudaTrouble, error: BaseException, *, is_suspect: bool) -> None:
        """Count a loss of the attempt: a CUDA error broke this process, which is to end.

        The trial goes to another device. If there, or where there is none, what it computes goes
        wrong again, it has failed.

        Args:
            trouble: What CUDA did.
            error: What the objective raised.
            is_suspect: Whether the device broke under trials that succeeded elsewhere.
        """
        self._word.take()
        self._outcome = Outcome.CUDA_BROKEN
        if self._is_draining() or _is_of(error, TrialInterrupt):
            self.release()
            return
        cause = f" ({trouble.cause})"
        log.error(
            "cuda_broken",
            kind=trouble.kind,
            device=self._device,
            exception=traceback_of(error),
            hint=f"{trouble.cause}; a fresh process takes this one's place",
        )
        text = describe_error(error, _ERROR_CHARACTERS - len(cause))
        result = self._result(error=f"{text}{cause}")
        result.fingerprint = trouble.fingerprint
        is_repeated = trouble.fingerprint == self._held.grant.record.error_fingerprint
        if trouble.is_of_code and is_repeated and not is_suspect:
            self.commit(TrialState.FAILED, error=result.error, cause=Cause.BROKE)
            return
        self.is_loss = True
        self._count(result, Charge.LOSS, self._device)

    def _count(
        self, result: Result, charge: Charge, lost_on: str = "", cause: Cause | None = None
    ) -> None:
        """Have the attempt counted, and the trial tried again unless that was the last time."""
        held, most = self._held, self._trial.spec.limit(charge)
        number, token, backoff = held.number, held.token, self._times.backoff
        self._leaves_files = True
        self._say(
            lambda: held.leases.fail(
                number,
                token,
                result,
                most,
                backoff,
                charge,
                lost_on,
                cause,
                held.first_step_seconds,
            )
        )
        # LOST, too, where only the answer to the first call was lost
        if self._status not in {"DEAD", None}:
            self._is_to_be_announced = True

    def refuse(self, error: Exception) -> None:
        """End the trial as FAILED: the same would go wrong again.

        Not so, if what was asked of the objective led to it.
        """
        if _is_of(error, TrialInterrupt):
            self.fail(error)
        else:
            text = hide(plain_text(error, _ERROR_CHARACTERS))
            self.commit(TrialState.FAILED, error=text, traceback=text, cause=Cause.FAILED)

    def cancel(self) -> None:
        """End the trial for good, since its study was cancelled; what it made is kept."""
        self.commit(TrialState.CANCELLED, error="the study was cancelled", cause=Cause.CANCELLED)

    def time_out(self) -> None:
        """End the trial as FAILED, since it has held slots for as long as it may."""
        self.commit(TrialState.FAILED, error=self._held.timeout_text, cause=Cause.TIMED_OUT)

    def in_place_of_objective(self, command: Command) -> bool:
        """Do what is asked of an objective that does not; the process must end then.

        To be called by the thread that renews the lease.

        Returns:
            False if the objective has ended, and its own end is being told.
        """
        if not self._word.take(waits=False):
            return False
        try:
            self._trial.settle_checkpoint(self._times.beat)  # it dies with this process
            if command is Command.CANCEL:
                self.cancel()
            elif command is Command.TIME_OUT:
                self.time_out()
            else:
                self.release(awaits_upload=False)  # nobody would renew the lease
        except BaseException:
            self._word.give_back()  # the objective's thread would wait for it for ever
            raise
        return True

    def park(self, *, awaits_upload: bool = True) -> None:
        """Pause the trial at the rung that it has reached; this slot is another trial's."""
        self._word.take()
        held = self._held
        if awaits_upload:
            self._trial.await_upload(_UPLOAD_BEATS * self._times.beat)
        pause = self._trial.next_rung.pause(self._result())
        self.exit_code = 0
        self._streak.end()
        self._say(lambda: held.leases.park(held.number, held.token, pause, held.first_step_seconds))
        log.info("paused", rung=pause.rung, step=pause.step, status=self._status)
        if not self._trial.has_checkpoint:
            log.warning(
                "paused_without_checkpoint",
                hint="if it is promoted, it starts anew; call trial.save_checkpoint and"
                " trial.load_checkpoint in the objective",
            )

    def release(self, cause: Cause | None = None, *, awaits_upload: bool = True) -> None:
        """Give the trial back, uncounted, and the message with it; or pause it, at its rung.

        Args:
            cause: Why; by default, what was asked of the objective.
            awaits_upload: Whether it is given back when the store has its checkpoint, or some time
                has passed.
        """
        if self._trial.next_rung.is_reached:
            self.park(awaits_upload=awaits_upload)
            return
        self._word.take()
        held = self._held
        if awaits_upload:
            self._trial.await_upload(_UPLOAD_BEATS * self._times.beat)
        if cause is None:
            is_paused = held.command in {Command.PAUSE, Command.PAUSE_NOW}
            cause = Cause.PAUSED if is_paused else Cause.DRAINED
        self._outcome = Outcome.GOES_BACK
        self._say(
            lambda: (
                "OK"
                if held.leases.release(
                    held.number, held.token, cause=cause, first_step_seconds=held.first_step_seconds
                )
                else "LOST"
            )
        )
        log.info("released", status=self._status)

    def give_back(self, error: TransientError) -> None:
        """Give the trial back, uncounted, until what it lacks may be there."""
        self._word.take()
        held, backoff = self._held, self._times.backoff
        reason = hide(plain_text(error, _REASON_CHARACTERS))
        log.warning("given_back", reason=reason)

        def release() -> str:
            was_held = held.leases.release(
                held.number, held.token, backoff, error.pause_seconds, reason, Cause.LACKING
            )
            return "OK" if was_held else "LOST"

        self._say(release)
        self._is_to_be_announced = True

    def hand_over(self, outcome: Outcome = Outcome.ENDED) -> None:
        """Give the trial back, uncounted, to another process: this one cannot run it."""
        self.release(Cause.HANDED_OVER)
        self._outcome, self._is_to_be_announced = outcome, True

    def fall_silent(self, error: LeaseLost) -> None:
        """Write nothing more for the trial: somebody else may run it now."""
        self._word.take()
        log.warning("lost", reason=str(error))

    def leave(self) -> Outcome:
        """See to what is left to do when the lease has been left; what becomes of the message."""
        if self._status is None and self._held.fell_silent:
            self._make_good()
        if self._is_to_be_announced:
            self._hints.pass_on(
                self._hint,
                self._trial.spec.resources.queue,
                self._held.leases.pause_seconds(self._held.number),
            )
        if self._entry is not None and self._status is not None:
            self._outbox.settle(self._entry, self._status, self._held.leases)
            if self._status != "LOST":
                generation = self._held.grant.record.generation
                self._checkpoints.remove(self._trial.study_name, generation, self._trial.number)
        if self._leaves_files:
            shutil.rmtree(self._trial.result_directory, ignore_errors=True)
        return self._outcome

    def _say(self, verb: Callable[[], str]) -> None:
        """Tell Redis how the attempt ended, for as long as the lease may still be held."""
        try:
            self._status = self._held.patiently(verb)
        except LeaseLost as error:
            self.fall_silent(error)

    def _make_good(self) -> None:
        """Wait for a Redis that was away for too long, and tell it what became of the trial.

        If it has a result, that; else that it is free: it would wait for its lease's end, and
        count a failure that is not its own. Nothing else could be run meanwhile.
        """
        held, entry = self._held, self._entry
        while not self._is_draining():
            try:
                if entry is not None:
                    self._status = held.leases.commit(
                        entry.number, entry.token, entry.state, entry.result
                    )
                    log.info("committed_late", status=self._status)
                elif held.leases.release(held.number, held.token, cause=Cause.REDIS_AWAY):
                    log.info("given_back")
                    self._is_to_be_announced = True
            except redis.RedisError:
                time.sleep(self._times.beat / 10)
            else:
                return

    def _result(self, values: list[float] | None = None, error: str | None = None) -> Result:
        """What this attempt came to, with what it attached to the trial."""
        result = Result(
            values=values,
            params=self._trial.untold_params,
            user_attrs=self._trial.user_attrs,
            constraints=self._trial.constraints,
            error=error,
            busy_seconds=lease_clock() - self._started_at,
            num_reports_left_out=self._trial.num_reports_left_out,
            code=self._code,
        )
        return result.sendable()


@contextmanager
def _disk_may_be_full() -> Iterator[None]:
    """Say that a result is not in the outbox, and go on: Redis may take it."""
    try:
        yield
    except OSError as problem:
        log.warning("outbox_not_written", error=str(problem), hint="make room on the disk")


def _is_of(error: BaseException | None, interrupt: type[TrialInterrupt]) -> bool:
    """Whether an error was raised by what an objective did about an interrupt."""
    while error is not None:
        if isinstance(error, interrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
