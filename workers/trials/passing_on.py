"""Which trials this process leaves to others, and how those get them.

Invariant: a trial that is left is announced again where another process may take it, and waits
where there is none; none is claimed to be left.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Final

from workers.coordination.clock import lease_clock
from workers.coordination.hints import Hints
from workers.coordination.leases import TrialLeases
from workers.coordination.studies import Studies
from workers.coordination.trial_record import TrialRecord
from workers.logs import get_logger
from workers.managers import CUDAManager
from workers.protocol.errors import StudyNotKnownError
from workers.protocol.messages import RunTrial
from workers.protocol.spec import StudySpec
from workers.protocol.states import TrialState
from workers.trials.code_that_ran import CodeThatRan
from workers.trials.drain_signal import DrainSignal
from workers.trials.failure_streak import FailureStreak
from workers.trials.hinted_trials import HintedTrials
from workers.trials.outcomes import Outcome
from workers.trials.refused_studies import RefusedStudies
from workers.trials.slot_health import SlotHealth

log = get_logger(__name__)

#: For how many beats a process whose CUDA does not work waits before a fresh one takes its place:
#: 10 minutes.
_PATIENCE_BEATS: Final = 60

#: For how many beats a trial that failed here is left to others that are busy: a minute, in which a
#: slot may idle; a fresh process is there within seconds.
_BUSY_BEATS: Final = 6


class PassingOn:
    """Leaves trials to other processes.

    Args:
        unchecked: The studies, as whoever wrote them.
        hints: Announces trials.
        health: What speaks against this slot, and which others there are.
        cuda: Its device.
        code: Whether this process has the submitter's code.
        streak: Which trials failed here.
        refusals: The studies of which no trial is taken here.
        drain: Whether this worker is shutting down.
        beat_seconds: How long a beat is.
    """

    def __init__(
        self,
        unchecked: Studies,
        hints: Hints,
        health: SlotHealth,
        cuda: CUDAManager,
        code: CodeThatRan,
        streak: FailureStreak,
        refusals: RefusedStudies,
        drain: DrainSignal,
        beat_seconds: float,
    ) -> None:
        self._unchecked = unchecked
        self._hints = hints
        self._health = health
        self._cuda = cuda
        self._code = code
        self._streak = streak
        self._refusals = refusals
        self._drain = drain
        self._beat_seconds = beat_seconds
        #: study and trial that failed here -> its attempt then, and since when it is left to others
        self._left: dict[tuple[str, int], tuple[int, float]] = {}

    def sit_out(self, hint: RunTrial) -> Outcome:
        """Leave a trial to the other slots, and take no message for as long as this one refuses.

        One whose CUDA does not work ends after a while: a fresh process looks again.
        """
        with suppress(StudyNotKnownError):  # nobody is to run it
            self.announce(self.queue_of(hint), hint, 0.0)
        until = lease_clock() + _PATIENCE_BEATS * self._beat_seconds
        while not self._drain.is_set() and self._health.refusal() is not None:
            if self._cuda.trouble is not None and lease_clock() > until:
                return Outcome.CUDA_BROKEN
            self.pause()
        return Outcome.ENDED

    def pause(self) -> None:
        """Wait for a beat, or for a drain."""
        until = lease_clock() + self._beat_seconds
        while lease_clock() < until and not self._drain.is_set():
            time.sleep(self._beat_seconds / 20)

    def leave(
        self, leases: TrialLeases, spec: StudySpec, hint: RunTrial, trials: HintedTrials
    ) -> Outcome | None:
        """Leave a trial to another process, if this one is not to run it."""
        if self._code.differs(spec) and spec.code.must_match:
            return self._leave_other_code(leases, spec, hint, trials)
        if self._refusals.is_lacking(spec):
            return self._leave_lacking(leases, spec, hint, trials)
        return self._leave_failed_here(leases, spec, hint, trials)

    def leave_refused(
        self, leases: TrialLeases, hint: RunTrial, reason: str, trials: HintedTrials
    ) -> Outcome:
        """Leave a trial to processes that take it; where there is none, it waits."""
        self._refusals.refuse(hint.study, reason)
        queue = self.queue_of(hint)
        # of a message that is not taken apart, any of its trials is a reason
        is_queued = any(leases.is_queued(number) for number in (hint.number, *hint.more))
        if is_queued and self._health.has_other_that_takes(queue, hint.study):
            self.pass_on(leases, queue, hint, trials)
        return Outcome.ENDED

    def queue_of(self, hint: RunTrial) -> str:
        """Where others take the trial from; whoever wrote that."""
        return self._unchecked.spec(hint.study).resources.queue

    def _leave_other_code(
        self, leases: TrialLeases, spec: StudySpec, hint: RunTrial, trials: HintedTrials
    ) -> Outcome | None:
        """Leave a trial to processes with the submitter's code; where there is none, it waits."""
        queue = spec.resources.queue
        if leases.is_queued(hint.number) and self._health.has_other_with_code(queue, spec.name):
            self.pass_on(leases, queue, hint, trials)
        return Outcome.ENDED

    def _leave_lacking(
        self, leases: TrialLeases, spec: StudySpec, hint: RunTrial, trials: HintedTrials
    ) -> Outcome | None:
        """Leave a trial to workers that may have what this one lacks; None if there is none.

        Of an objective that this one does not import it waits, then, for a while.
        """
        queue = spec.resources.queue
        if not self._health.has_other_that_takes(queue, spec.name):
            if not self._refusals.has_waiting(spec.name):
                return None
            if not self._refusals.may_look_again(spec.name):
                return Outcome.ENDED
            self._refusals.accept(spec.name)  # the attempt that begins is to say
            return None
        if leases.is_queued(hint.number):
            self.pass_on(leases, queue, hint, trials)
        return Outcome.ENDED

    def _leave_failed_here(
        self, leases: TrialLeases, spec: StudySpec, hint: RunTrial, trials: HintedTrials
    ) -> Outcome | None:
        """Leave a trial that failed in this process to one in which it did not, if there is one.

        Until a trial succeeds here, nobody knows whether the objective or the process is to blame.
        Where the others are busy for long, a fresh process takes this one's place.
        """
        if not self._streak.has(hint.study, hint.number):
            self._left.pop((hint.study, hint.number), None)
            return None
        record = leases.record(hint.number)
        if record is None or record.state is not TrialState.QUEUED:
            return None
        queue = spec.resources.queue
        if not self._health.has_other_than(queue, spec.name, record.failed_in):
            return None
        has_to_wait = self.pass_on(leases, queue, hint, trials)
        if has_to_wait or not leases.is_queued(hint.number) or not self._is_left(hint, record):
            return Outcome.ENDED
        log.warning("process_ends", reason="its trial failed here, and all others are busy")
        return Outcome.SICK

    def _is_left(self, hint: RunTrial, record: TrialRecord) -> bool:
        """Whether all others have left a trial that failed here for long."""
        key, now = (hint.study, hint.number), lease_clock()
        attempt, since = self._left.get(key, (record.attempt, now))
        if attempt != record.attempt:  # one of them had it meanwhile
            since = now
        self._left[key] = record.attempt, since
        return now - since >= _BUSY_BEATS * self._beat_seconds

    def pass_on(
        self, leases: TrialLeases, queue: str, hint: RunTrial, trials: HintedTrials
    ) -> bool:
        """Announce a trial again, for others; stay busy for a moment, or this process gets it.

        What is left of its message does not wait for that.

        Returns:
            Whether it may be claimed only later.
        """
        pause = leases.pause_seconds(hint.number)
        self.announce(queue, hint, pause)
        trials.hand_on(queue)
        if not pause:
            beat = self._beat_seconds
            until = lease_clock() + beat / 10
            while lease_clock() < until and leases.is_queued(hint.number):
                time.sleep(beat / 200)
        return pause > 0

    def announce(self, queue: str, hint: RunTrial, delay_seconds: float) -> None:
        """Send a trial's hint again, after a while."""
        self._hints.pass_on(hint, queue, delay_seconds)
