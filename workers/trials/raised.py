"""What becomes of a trial whose objective raised something.

Invariant: whatever was raised comes to one end of the attempt; what was asked of the objective, and
a worker that shuts down, are no failures of it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

import optuna
import redis

from workers.coordination.studies import Studies
from workers.logs import get_logger, traceback_of
from workers.managers import CUDAManager
from workers.passwords import hide
from workers.processes.registry import ProcessRecord
from workers.protocol.errors import (
    DrainRequested,
    FleetError,
    InvalidInputError,
    ObjectiveError,
    ObjectiveNotLoadedError,
    RungReached,
    TransientError,
    TrialCancelled,
    TrialInterrupt,
    TrialTimedOut,
    UnfitStudyError,
    WorkerLacksError,
)
from workers.protocol.events import Cause
from workers.protocol.plain import describe_error, plain_text
from workers.protocol.states import Charge, TrialState
from workers.trials.advice import advice_on
from workers.trials.cuda_errors import CudaTrouble, cuda_trouble
from workers.trials.dead_loaders import DeadLoader, dead_loader
from workers.trials.ending import AttemptEnd
from workers.trials.failure_streak import FailureStreak
from workers.trials.out_of_memory import ran_out_of_memory
from workers.trials.outcomes import Outcome
from workers.trials.refused_studies import RefusedStudies
from workers.trials.slot_health import SlotHealth
from workers.trials.tracebacks import EXITED, fingerprint, objective_traceback

log = get_logger(__name__)

#: How much of an error's text travels with a failure.
_ERROR_CHARACTERS: Final = 2000

#: The fingerprint of an objective that ran out of memory: how much was missing differs.
_OUT_OF_MEMORY: Final = "out of memory"


class ErrorJudge:
    """Judges what objectives raise in this process.

    Args:
        record: This process's entry in the registry.
        cuda: Its device.
        health: What speaks against this slot.
        streak: Failures in a row of this process.
        studies: Where a study is asked to stop of which no trial could be trained.
        refusals: The studies of which no trial is taken here.
        is_draining: Whether this worker is shutting down.
    """

    def __init__(
        self,
        record: ProcessRecord,
        cuda: CUDAManager,
        health: SlotHealth,
        streak: FailureStreak,
        studies: Studies,
        refusals: RefusedStudies,
        is_draining: Callable[[], bool],
    ) -> None:
        self._record = record
        self._cuda = cuda
        self._health = health
        self._streak = streak
        self._studies = studies
        self._refusals = refusals
        self._is_draining = is_draining

    def judge(self, error: BaseException, end: AttemptEnd, *, was_loaded: bool) -> None:
        """End an attempt whose objective raised something.

        Args:
            error: What it raised.
            end: The end of its attempt.
            was_loaded: Whether the objective was imported in this process.
        """
        trouble = cuda_trouble(error)
        if trouble is None and self._cuda.check() is not None:
            trouble = CudaTrouble("CUDA error", str(self._cuda.trouble))
        if trouble is not None:  # whatever the objective made of it
            self._cuda.note_broken(trouble.kind)
            self._lose(trouble, error, end)
        elif isinstance(error, optuna.TrialPruned):
            self._prune_by(error, end)
        elif isinstance(error, ObjectiveNotLoadedError):
            self._leave_objective(error, end, was_loaded=was_loaded)
        elif isinstance(error, WorkerLacksError) and self._leave_to_others(error, end):
            log.warning("left_to_others", reason=str(error))
        elif isinstance(error, (ObjectiveError, InvalidInputError)):
            self._give_up(error, end)
        elif isinstance(error, TransientError):
            end.give_back(error)
        elif (dead := dead_loader(error)) is not None:
            self._lose_loader(dead, error, end)
        elif ran_out_of_memory(error):
            self._run_out_of_memory(error, end)
        else:
            self._fail(error, end)

    def _give_up(self, error: FleetError, end: AttemptEnd) -> None:
        """End a trial as FAILED; and its study, if no other could be trained."""
        is_lacking = isinstance(error, WorkerLacksError) and error.is_of_study
        if is_lacking and self._has_trained(end):
            self._await_it(error, end)
            return
        if is_lacking or isinstance(error, UnfitStudyError):
            log.error("study_unfit", hint="no trial of it can be trained; no further one begins")
            with suppress(redis.RedisError):  # the next trial asks for it
                self._studies.ask_to_stop(end.trial.study_name)
        self._refuse(error, end)

    def _has_trained(self, end: AttemptEnd) -> bool:
        """Whether the study was trained before: what is lacking now was there."""
        if end.held.grant.record.checkpoint is not None:
            return True
        with suppress(redis.RedisError):
            return self._studies.facts.get(end.trial.study_name, "best_value") is not None
        return False

    def _await_it(self, error: FleetError, end: AttemptEnd) -> None:
        """Give a trial back, uncounted, until what is away may be back, such as a share.

        The study says meanwhile that no worker takes its trials, and why: until the next attempt.
        """
        with suppress(redis.RedisError):  # it is said next time
            self._refusals.accept(end.trial.study_name)  # as soon as it is back, here too
            self._refusals.refuse(end.trial.study_name, str(error))
        end.give_back(TransientError(str(error)))

    def _leave_to_others(self, error: WorkerLacksError, end: AttemptEnd) -> bool:
        """Give a trial back, uncounted, if another process may have what this one lacks."""
        spec = end.trial.spec
        with suppress(redis.RedisError):  # while it is away there is no other
            if self._health.has_other_that_takes(spec.resources.queue, spec.name):
                self._refusals.refuse_lacking(spec, str(error))
                end.hand_over()
                return True
        return False

    def _leave_objective(
        self, error: ObjectiveNotLoadedError, end: AttemptEnd, *, was_loaded: bool
    ) -> None:
        """Give a trial back, uncounted, whose objective is not allowed here, or does not import.

        Where no other process takes the study, its trials wait, and it says so. A process that had
        imported it may be broken: a fresh one is to say.
        """
        log.error("attempt_failed", exception=traceback_of(error))
        if was_loaded:
            log.error("process_sick", reason="it no longer imports an objective that it had")
            end.hand_over(Outcome.SICK)
            return
        with suppress(redis.RedisError):  # it is said next time
            self._refusals.refuse_lacking(end.trial.spec, str(error), waits=True)
        end.hand_over()

    def _prune_by(self, error: optuna.TrialPruned, end: AttemptEnd) -> None:
        """End the trial as the objective asked, with the last value that it reported."""
        if _is_of(error, RungReached):  # which it took for a verdict
            end.park()
            return
        # to prune what did not fit is an objective's own way to say that it did not
        _prune(end, is_out_of_memory=ran_out_of_memory(error))

    def _run_out_of_memory(self, error: BaseException, end: AttemptEnd) -> None:
        """Give a trial up that needs more memory than there is: PRUNED, and no point to go near.

        It is tried once more before: what others had left in the memory may be gone by then.
        """
        end.begin()
        if self._is_draining() or _is_of(error, TrialInterrupt):
            self._fail(error, end)
            return
        log.warning("out_of_memory", exception=traceback_of(error))
        record, spec = end.held.grant.record, end.trial.spec
        result = end.result(error=f"out of memory: {describe_error(error, _ERROR_CHARACTERS)}")
        result.fingerprint = _OUT_OF_MEMORY
        is_repeated = record.error_fingerprint == _OUT_OF_MEMORY
        if is_repeated or record.failures + 1 >= spec.max_failures:
            _prune(end, result.error, is_out_of_memory=True)
        else:
            end.count(result, Charge.FAILURE, cause=Cause.OUT_OF_MEMORY)

    def _fail(self, error: BaseException, end: AttemptEnd, *, may_be_sick: bool = True) -> None:
        """Count a failure of the attempt; the trial is tried again, or DEAD.

        What goes wrong while this worker shuts down is not counted: the signals that end it reach
        loaders and other processes that the objective started, too.

        Args:
            error: What the objective raised.
            end: The end of its attempt.
            may_be_sick: Whether a fresh process might do better in this one's place.
        """
        if self._is_asked_for(error, end):
            return
        log.error("attempt_failed", exception=traceback_of(error))
        held, spec = end.held, end.trial.spec
        advice = "" if isinstance(error, FleetError) else advice_on(error)
        text = describe_error(error, _ERROR_CHARACTERS - len(advice))
        result = end.result(error=f"{text}{advice}")
        result.fingerprint = fingerprint(error)
        result.traceback = objective_traceback(error)
        is_repeated = result.fingerprint in {EXITED, held.grant.record.error_fingerprint} - {None}
        doubt = self._streak.add(spec.name, held.number, is_repeated=is_repeated)
        if doubt is not None and may_be_sick:
            log.error("process_sick", reason=doubt, hint="a fresh one takes its place")
            end.hand_over(Outcome.SICK)
        elif is_repeated:
            # once more, the same would go wrong in the same way
            error_text, traceback = result.error, result.traceback
            end.commit(TrialState.FAILED, error=error_text, traceback=traceback, cause=Cause.FAILED)
        else:
            end.count(result, Charge.FAILURE)

    def _lose_loader(self, dead: DeadLoader, error: BaseException, end: AttemptEnd) -> None:
        """Count a loss of the attempt: a loader process was killed under it."""
        if self._is_asked_for(error, end):
            return
        log.error("loader_died", loader=dead.pid, signal=dead.signal, exception=traceback_of(error))
        then = dead.advice
        if dead.was_survived:  # it may have failed by itself
            then = f"; then the objective raised {describe_error(error, _ERROR_CHARACTERS)}"
        result = end.result(error=f"{dead}{then}")
        end.count(result, Charge.LOSS, cause=Cause.LOADER_DIED)

    def _is_asked_for(self, error: BaseException, end: AttemptEnd) -> bool:
        """End an attempt that was to end, whatever it raised meanwhile; False if it was not."""
        end.begin()
        if _is_of(error, TrialCancelled):
            end.cancel()
        elif _is_of(error, TrialTimedOut):
            end.time_out()
        elif self._is_draining() or _is_of(error, DrainRequested):
            log.warning("failed_while_draining", error=describe_error(error, _ERROR_CHARACTERS))
            end.release()
        else:
            return False
        return True

    def _lose(self, trouble: CudaTrouble, error: BaseException, end: AttemptEnd) -> None:
        """Count a loss of the attempt: a CUDA error broke this process, which is to end.

        The trial goes to another device. If there, or where there is none, what it computes goes
        wrong again, it has failed.

        Args:
            trouble: What CUDA did.
            error: What the objective raised.
            end: The end of its attempt.
        """
        end.begin()
        end.outcome = Outcome.CUDA_BROKEN
        if self._is_draining() or _is_of(error, TrialInterrupt):
            end.release()
            return
        cause = f" ({trouble.cause})"
        log.error(
            "cuda_broken",
            kind=trouble.kind,
            device=self._record.device,
            exception=traceback_of(error),
            hint=f"{trouble.cause}; a fresh process takes this one's place",
        )
        text = describe_error(error, _ERROR_CHARACTERS - len(cause))
        result = end.result(error=f"{text}{cause}")
        result.fingerprint = trouble.fingerprint
        is_repeated = trouble.fingerprint == end.held.grant.record.error_fingerprint
        if trouble.is_of_code and is_repeated and not self._health.is_suspect():
            end.commit(TrialState.FAILED, error=result.error, cause=Cause.BROKE)
            return
        end.count(result, Charge.LOSS, self._record.device)

    def _refuse(self, error: Exception, end: AttemptEnd) -> None:
        """End the trial as FAILED: the same would go wrong again.

        Not so, if what was asked of the objective led to it.
        """
        if _is_of(error, TrialInterrupt):
            self._fail(error, end)
        else:
            text = hide(plain_text(error, _ERROR_CHARACTERS))
            end.commit(TrialState.FAILED, error=text, traceback=text, cause=Cause.FAILED)


def _prune(end: AttemptEnd, error: str | None = None, *, is_out_of_memory: bool) -> None:
    """End the trial with the last value that it reported."""
    value = end.trial.last_value
    values = None if value is None else [value]
    end.commit(TrialState.PRUNED, values, error, is_out_of_memory=is_out_of_memory)


def _is_of(error: BaseException | None, interrupt: type[TrialInterrupt]) -> bool:
    """Whether an error was raised by what an objective did about an interrupt."""
    while error is not None:
        if isinstance(error, interrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
