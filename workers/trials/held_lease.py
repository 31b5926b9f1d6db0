"""A trial's lease while it is held: a keeper renews it, and the trial asks whether to go on.

Invariant: the holder falls silent before the server's deadline, by a clock that counts suspend.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, NoReturn, Self, TypeVar

import redis

from workers.coordination.clock import lease_clock
from workers.coordination.grants import Grant
from workers.coordination.leases import TrialLeases
from workers.logs import get_logger
from workers.protocol.errors import DrainRequested, LeaseLost, TrialCancelled, TrialTimedOut
from workers.protocol.pace import Pace
from workers.protocol.states import Command
from workers.times import Times
from workers.trials.lease_keeper import LeaseKeeper

log = get_logger(__name__)

T = TypeVar("T")

#: The exit code of a pool process whose training made no step for too long.
EXIT_HUNG: Final = 72

#: The exit code of a pool process whose objective went on without a lease.
EXIT_LEASE_LOST: Final = 73

#: The exit code of a pool process whose study was cancelled, or paused at once, and whose objective
#: did not end.
EXIT_NOT_OBEYED: Final = 77

#: What a pause means for a trial, for its log.
_PAUSED: Final = "the study was paused"

#: An attempt that has run for so long is not young: it is none of a short trial.
YOUNG_SECONDS: Final = 0.1

#: Between two attempts to reach a Redis that is away.
_RETRY_SECONDS: Final = 0.2


class HeldLease:
    """Renews a grant in the background for as long as the `with` block runs.

    Args:
        leases: The study's trials.
        number: The trial.
        grant: What `claim` answered.
        sent_at: `lease_clock()` from before the claim was sent.
        times: The protocol's intervals.
        keeper: The thread that renews it.
        is_draining: Whether this worker is shutting down.
        leave_word: Told, for whoever cleans up, why this process is about to end.
    """

    def __init__(
        self,
        leases: TrialLeases,
        number: int,
        grant: Grant,
        *,
        sent_at: float,
        times: Times,
        keeper: LeaseKeeper,
        is_draining: Callable[[], bool],
        leave_word: Callable[[str], None] = lambda _reason: None,
    ) -> None:
        self.leases = leases
        self.number = number
        self.grant = grant
        #: The last step that training reached; sent along with each renewal.
        self.step = grant.record.step
        self.command = Command.NONE
        #: whether a drain waits, for training is at a point at which it cannot be resumed
        self.defers_drain = False
        #: after so many seconds without a step, the process ends: it must not look alive
        self.progress_timeout: float | None = None
        self._progressed_at: float | None = None
        #: when training made its first step
        self._began_at: float | None = None
        self._claimed_at = sent_at
        #: steps that the whole training has, if anybody told
        self.total_steps: int | None = None
        #: examples that this attempt has trained on, if anybody tells
        self.num_examples = 0
        self._paced = (sent_at, grant.record.step, 0)
        self._times_out_at = math.inf
        #: what is told of a trial that ends for its time
        self.timeout_text = ""
        #: ends the attempt in place of an objective that does not; False if it ends at this moment
        self.end_in_place: Callable[[Command], bool] = lambda _command: False
        #: done once, soon after the lease began, and then with each renewal
        self._errands: list[Callable[[], None]] = []
        #: since when something pressing is asked of the objective
        self._pressed_at: float | None = None
        self._times = times
        self._is_draining = is_draining
        self._leave_word = leave_word
        self._silent_from = sent_at + times.holder
        self._is_refused = False
        self._ended = threading.Event()
        self._keeper = keeper

    @property
    def token(self) -> int:
        """The fencing token that every write carries."""
        return self.grant.token

    @property
    def is_lost(self) -> bool:
        """Whether this process must not write for the trial any more."""
        return self._is_refused or self.fell_silent

    @property
    def fell_silent(self) -> bool:
        """Whether the lease ended by this side's clock; the server may think it held still."""
        return not self._is_refused and lease_clock() >= self._silent_from

    def check(self) -> None:
        """Return if training may go on; cheap enough for every step.

        Raises:
            LeaseLost: Somebody else may run the trial now.
            TrialTimedOut: Its time is up.
            TrialCancelled: The study was cancelled.
            DrainRequested: This worker is shutting down, or the study was paused.
        """
        if self.is_lost:
            raise LeaseLost(f"trial {self.number}: token {self.token} is no longer valid")
        self.check_time()
        if self.command is Command.CANCEL:
            raise TrialCancelled(f"trial {self.number}: the study was cancelled")
        if self.defers_drain:
            return
        if self.command in {Command.PAUSE, Command.PAUSE_NOW}:
            raise DrainRequested(f"trial {self.number}: {_PAUSED}")
        if self.command is Command.DRAIN or self._is_draining():
            raise DrainRequested(f"trial {self.number}: this worker is shutting down")

    def time_out(self, seconds: float, scale: float = 1.0) -> None:
        """Have the trial end when all its attempts together have held slots for so long.

        Args:
            seconds: What one trial may take; what its attempts before held is taken off.
            scale: Multiplies it, as it does all intervals.
        """
        record = self.grant.record
        self._times_out_at = lease_clock() + seconds * scale - record.held_ms / 1000
        attempts = "1 attempt" if self.grant.attempt == 1 else f"{self.grant.attempt} attempts"
        self.timeout_text = (
            f"trial_timeout: it held slots for {seconds:g} s, in {attempts}, and did not end; where"
            " a trial may take longer, raise `trial_timeout`"
        )

    def ripen(self, errand: Callable[[], None]) -> None:
        """Have something done beside the objective once the attempt is not young, and later on.

        Args:
            errand: Is quick, raises nothing, and may be called with nothing to do.
        """
        self._errands.append(errand)

    def _run_errands(self) -> None:
        for errand in self._errands:
            errand()

    def check_time(self) -> None:
        """Return if the trial may go on, by its time.

        Raises:
            TrialTimedOut: Its time is up.
        """
        if lease_clock() >= self._times_out_at:
            raise TrialTimedOut(self.timeout_text)

    def note_progress(self, step: int) -> None:
        """Note that training is about to make a step; from the first on, hanging is noticed."""
        self.step = step
        self._progressed_at = lease_clock()

    def note_first_step(self) -> None:
        """Note that training makes its first step, or tells of it for the first time."""
        self._began_at = self._began_at or lease_clock()

    @property
    def first_step_seconds(self) -> float | None:
        """How long after the claim training made its first step; None before."""
        return None if self._began_at is None else self._began_at - self._claimed_at

    def note_sign_of_life(self) -> None:
        """Note that training does something, such as a report; it need not make steps."""
        if self._progressed_at is not None:
            self._progressed_at = lease_clock()

    def patiently(self, call: Callable[[], T]) -> T:
        """Make a call, again while Redis is away, for as long as the lease may still be held.

        Raises:
            LeaseLost: Redis stayed away for too long.
        """
        while True:
            try:
                return call()
            except redis.RedisError as error:
                if self.is_lost:
                    raise LeaseLost(
                        f"trial {self.number}: Redis was away for too long ({error})"
                    ) from error
                log.warning("redis_lost", error=str(error))
                time.sleep(min(_RETRY_SECONDS, self._times.beat))

    def lose(self) -> None:
        """Note that the server refused the token."""
        self._is_refused = True

    def give_up(self) -> NoReturn:
        """Note that the server refused the token, and end the objective.

        Raises:
            LeaseLost: Always.
        """
        self.lose()
        raise LeaseLost(f"trial {self.number}: token {self.token} is no longer valid")

    def __enter__(self) -> Self:
        self._keeper.keep(self._rounds())
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._keeper.leave()

    def _rounds(self) -> Iterator[float]:
        """What is done beside the objective, with the seconds to wait before it goes on.

        Where something goes wrong in it, the lease is not renewed any more, and ends as any other.
        """
        try:
            yield from self._care()
        except Exception:
            log.exception("lease_not_kept")
        while not self.is_lost:
            yield max(self._silent_from - lease_clock(), self._times.beat / 10)
        yield self._times.grace
        log.error("ending_process", reason="the lease is lost, and the objective goes on")
        os._exit(EXIT_LEASE_LOST)

    def _care(self) -> Iterator[float]:
        """The rounds of a lease that is held."""
        pause = min(self._times.beat, max(0.0, self._times_out_at - lease_clock()))
        early = min(YOUNG_SECONDS, pause)
        yield early
        self._run_errands()
        yield pause - early
        while not self.is_lost:
            self._end_if_hung()
            # while Redis is away, ask more often: what is left of the lease is short
            pause = self._times.beat if self._renew() else self._times.beat / 10
            self._run_errands()
            self._end_if_not_obeyed()
            soon = min(self._grace_left(), self._times_out_at - lease_clock())
            yield min(pause, max(soon, self._times.beat / 10))

    def _end_if_hung(self) -> None:
        if self.progress_timeout is None or self._progressed_at is None:
            return
        silent = lease_clock() - self._progressed_at
        if silent > self.progress_timeout:
            log.error("ending_process", reason="no step", seconds=round(silent, 1), step=self.step)
            self._leave_word(
                f"no progress for {silent:.0f} s, since step {self.step}; where a step may take so"
                f" long, raise `progress_timeout` (now {self.progress_timeout:g} s), or call"
                " trial.progress, report or save_checkpoint more often"
            )
            os._exit(EXIT_HUNG)

    @property
    def _asked(self) -> Command:
        """What is asked of the objective: by the server, or by the trial's own time."""
        return Command.TIME_OUT if lease_clock() >= self._times_out_at else self.command

    def _grace_left(self) -> float:
        """How long the objective may still take to do what is asked of it."""
        if not self._asked.is_pressing:
            self._pressed_at = None
            return math.inf
        now = lease_clock()
        self._pressed_at = self._pressed_at or now
        return max(0.0, self._pressed_at + self._times.cancel_grace - now)

    def _end_if_not_obeyed(self) -> None:
        if self._grace_left() > 0 or self.is_lost or not self.end_in_place(self._asked):
            return
        log.error(
            "ending_process",
            reason="the objective goes on, and is not to",
            asked=self._asked.value,
            hint="call trial.report or trial.progress now and then",
        )
        os._exit(EXIT_NOT_OBEYED)

    def _pace(self) -> Pace | None:
        """How fast training was since this was last asked; None before its first step."""
        if self._began_at is None:
            return None
        before_at, before_step, before_examples = self._paced
        now, step, examples = lease_clock(), self.step, self.num_examples
        self._paced = (now, step, examples)
        seconds = now - max(before_at, self._began_at)
        if seconds <= 0 or step < before_step:
            return Pace(total=self.total_steps)
        rate = round((examples - before_examples) / seconds, 2) if examples else None
        return Pace(round((step - before_step) / seconds, 4), rate, self.total_steps)

    def _renew(self) -> bool:
        sent_at = lease_clock()
        try:
            command = self.leases.renew(
                self.number,
                self.token,
                self._times.lease,
                self.step,
                self.first_step_seconds,
                self._pace(),
            )
        except redis.RedisError as error:
            log.warning("lease_not_renewed", error=str(error))
            return False
        if command is None:
            self.lose()
            # a renewal that was under way when the trial ended is refused, too
            if not self._ended.wait(_RETRY_SECONDS):
                log.warning("lease_lost", token=self.token)
        else:
            self.command = command
            self._silent_from = sent_at + self._times.holder
        return True
