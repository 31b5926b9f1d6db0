"""The ends of an attempt: a result, a count, a release, or, its lease lost, silence.

What is said of it is said while the lease is held. What is tidied up after it is tidied when the
lease has been left: it may take as long as it likes, and is not taken for an objective that goes
on without a lease.

What Redis was not there to take is told as soon as it is back.

Invariant: an attempt comes to exactly one end, said by one thread: the objective's own, or, where
that does not do what is asked of its study, the one that renews the lease.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import redis

from workers.coordination.clock import lease_clock
from workers.coordination.hints import Hints
from workers.coordination.identity import ProcessIdentity
from workers.disk.checkpoints import CheckpointStore
from workers.disk.outbox import Outbox, OutboxEntry
from workers.logs import get_logger
from workers.passwords import hide
from workers.protocol.errors import LeaseLost, TransientError
from workers.protocol.events import Cause
from workers.protocol.messages import Result, RunTrial
from workers.protocol.plain import plain_text
from workers.protocol.states import OUT_OF_MEMORY, Charge, Command, TrialState
from workers.times import Times
from workers.trials.failure_streak import FailureStreak
from workers.trials.final_result import FinalResult
from workers.trials.handle import FleetTrial
from workers.trials.held_lease import HeldLease
from workers.trials.last_word import LastWord
from workers.trials.outcomes import Outcome

log = get_logger(__name__)

#: For how many beats a trial that another host may go on with waits for the store: 30 s.
_UPLOAD_BEATS: Final = 3

#: How much of what a trial waits for travels with it.
_REASON_CHARACTERS: Final = 300


class AttemptEnd:
    """The end of one attempt: one of `commit`, `count`, `release`, `park`..., then `leave`.

    Args:
        trial: What the objective was given.
        held: Its lease.
        hint: The message that brought it here.
        streak: Failures in a row of this process, which a success ends.
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
        self.trial = trial
        self.held = held
        self._hint = hint
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
        #: what becomes of the message and of the process, where nothing else does
        self.outcome = Outcome.ENDED
        self._word = LastWord()
        #: whether its device broke under the attempt
        self.has_broken_device = False
        self._final: FinalResult | None = None
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
        result = self.result(values, error)
        result.traceback = traceback
        if is_out_of_memory:
            result.constraints[OUT_OF_MEMORY] = 1.0
        held, trial = self.held, self.trial
        trial.drop_leftovers()
        if state in {TrialState.COMPLETE, TrialState.PRUNED} and not is_out_of_memory:
            self.exit_code = 0
            self._streak.end()
        entry = OutboxEntry(
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
        self._final = FinalResult(self._outbox, entry, held)
        self._final.write()
        self._say(partial(self._commit, self._final, cause))
        log.info(
            "ended",
            state=state.value,
            status=self._status,
            values=values,
            error=error,
            busy_seconds=round(result.busy_seconds, 3),
        )

    def _commit(self, final: FinalResult, cause: Cause | None) -> str:
        freed = self._owner if self._is_last() else None
        status = final.commit(cause, freed)
        self.has_freed = freed is not None and status == "OK"
        return status

    def begin(self) -> None:
        """Have the word: from now on, nobody else ends the attempt."""
        self._word.take()

    def count(
        self, result: Result, charge: Charge, lost_on: str = "", cause: Cause | None = None
    ) -> None:
        """Have the attempt counted, and the trial tried again unless that was the last time.

        Args:
            result: What it came to, with its error.
            charge: As what it counts.
            lost_on: The device that broke under it.
            cause: What is said of it; by default, what its charge says.
        """
        self._word.take()
        self.has_broken_device = bool(lost_on)
        held, most = self.held, self.trial.spec.limit(charge)
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

    def cancel(self) -> None:
        """End the trial for good, since its study was cancelled; what it made is kept."""
        self.commit(TrialState.CANCELLED, error="the study was cancelled", cause=Cause.CANCELLED)

    def time_out(self) -> None:
        """End the trial as FAILED, since it has held slots for as long as it may."""
        self.commit(TrialState.FAILED, error=self.held.timeout_text, cause=Cause.TIMED_OUT)

    def in_place_of_objective(self, command: Command) -> bool:
        """Do what is asked of an objective that does not; the process must end then.

        To be called by the thread that renews the lease.

        Returns:
            False if the objective has ended, and its own end is being told.
        """
        if not self._word.take(waits=False):
            return False
        try:
            self.trial.settle_checkpoint(self._times.beat)  # it dies with this process
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
        held = self.held
        if awaits_upload:
            self.trial.await_upload(_UPLOAD_BEATS * self._times.beat)
        pause = self.trial.next_rung.pause(self.result())
        self.exit_code = 0
        self._streak.end()
        self._say(lambda: held.leases.park(held.number, held.token, pause, held.first_step_seconds))
        log.info("paused", rung=pause.rung, step=pause.step, status=self._status)
        if not self.trial.has_checkpoint:
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
        if self.trial.next_rung.is_reached:
            self.park(awaits_upload=awaits_upload)
            return
        self._word.take()
        held = self.held
        if awaits_upload:
            self.trial.await_upload(_UPLOAD_BEATS * self._times.beat)
        if cause is None:
            is_paused = held.command in {Command.PAUSE, Command.PAUSE_NOW}
            cause = Cause.PAUSED if is_paused else Cause.DRAINED
        self.outcome = Outcome.GOES_BACK
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
        held, backoff = self.held, self._times.backoff
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
        self.outcome, self._is_to_be_announced = outcome, True

    def fall_silent(self, error: LeaseLost) -> None:
        """Write nothing more for the trial: somebody else may run it now."""
        self._word.take()
        log.warning("lost", reason=str(error))

    def leave(self) -> Outcome:
        """See to what is left to do when the lease has been left; what becomes of the message."""
        if self._status is None and self.held.fell_silent:
            self._make_good()
        if self._is_to_be_announced:
            self._hints.pass_on(
                self._hint,
                self.trial.spec.resources.queue,
                self.held.leases.pause_seconds(self.held.number),
            )
        if self._final is not None and self._status is not None:
            self._final.settle(self._status)
            if self._status != "LOST":
                generation = self.held.grant.record.generation
                self._checkpoints.remove(self.trial.study_name, generation, self.trial.number)
        if self._leaves_files:
            shutil.rmtree(self.trial.result_directory, ignore_errors=True)
        return self.outcome

    def _say(self, verb: Callable[[], str]) -> None:
        """Tell Redis how the attempt ended, for as long as the lease may still be held."""
        try:
            self._status = self.held.patiently(verb)
        except LeaseLost as error:
            self.fall_silent(error)

    def _make_good(self) -> None:
        """Wait for a Redis that was away for too long, and tell it what became of the trial.

        If it has a result, that; else that it is free: it would wait for its lease's end, and
        count a failure that is not its own. Nothing else could be run meanwhile.
        """
        held, final = self.held, self._final
        while not self._is_draining():
            try:
                if final is not None:
                    self._status = final.commit_late()
                    log.info("committed_late", status=self._status)
                elif held.leases.release(held.number, held.token, cause=Cause.REDIS_AWAY):
                    log.info("given_back")
                    self._is_to_be_announced = True
            except redis.RedisError:
                time.sleep(self._times.beat / 10)
            else:
                return

    def result(self, values: list[float] | None = None, error: str | None = None) -> Result:
        """What this attempt came to, with what it attached to the trial."""
        result = Result(
            values=values,
            params=self.trial.untold_params,
            user_attrs=self.trial.user_attrs,
            constraints=self.trial.constraints,
            error=error,
            busy_seconds=lease_clock() - self._started_at,
            num_reports_left_out=self.trial.num_reports_left_out,
            code=self._code,
        )
        return result.sendable()
