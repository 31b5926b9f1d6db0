"""Runs trials that were claimed: holds the lease, has the objective called, puts the process back.

Invariant: an attempt comes to an end, its W&B run is finished, and this process is as it was
before, or ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple, Self

import redis

from workers.coordination.clock import lease_clock
from workers.coordination.grants import Grant
from workers.coordination.leases import TrialLeases
from workers.coordination.trial_output import Attempt
from workers.disk.checkpoints import CheckpointStore
from workers.disk.object_store import ObjectStore
from workers.disk.outbox import Outbox
from workers.disk.uploads import Uploads
from workers.logs import get_logger
from workers.managers import DataManager, DirectoryManager, TensorManager, WandbManager
from workers.managers.surroundings import Surroundings
from workers.protocol.messages import RunTrial
from workers.protocol.spec import StudySpec
from workers.protocol.states import Charge
from workers.trials.ending import AttemptEnd
from workers.trials.handle import FleetTrial
from workers.trials.held_lease import YOUNG_SECONDS, HeldLease
from workers.trials.hinted_trials import HintedTrials
from workers.trials.lease_keeper import LeaseKeeper
from workers.trials.objective_calls import ObjectiveCalls
from workers.trials.outcomes import Outcome
from workers.trials.preparation import Preparation
from workers.trials.raised import ErrorJudge
from workers.trials.slot import AT_NO_TRIAL, Slot

log = get_logger(__name__)


class Claimed(NamedTuple):
    """A trial that this process was granted."""

    spec: StudySpec
    leases: TrialLeases
    grant: Grant
    hint: RunTrial
    """The part of the message that named it."""
    trials: HintedTrials
    """Those that the message hinted at beside it."""
    root: Path | None
    """Where the code lies that came with the study."""
    sent_at: float
    """`lease_clock()` from when it was claimed."""

    @property
    def attempt(self) -> Attempt:
        """Whose is what it prints."""
        grant, generation = self.grant, self.grant.record.generation
        return Attempt(self.spec.name, self.hint.number, grant.attempt, grant.token, generation)

    def let_others_go_on(self) -> None:
        """Hand on what is left of the message."""
        self.trials.hand_on(self.spec.resources.queue)


class Attempts:
    """Runs attempts one after the other; renews their leases while open.

    Args:
        slot: This process.
        on_error: Told of what an objective raised, before it is judged.
        printing: A context in which what is printed is an attempt's, where that is kept.
    """

    def __init__(
        self,
        slot: Slot,
        on_error: Callable[[BaseException], None],
        printing: Callable[[Attempt], AbstractContextManager[None]] | None,
    ) -> None:
        self._slot = slot
        self._printing = printing or (lambda _attempt: nullcontext())
        self._settings = settings = slot.settings
        self._times = settings.times
        uploads = Uploads(settings.home, has_store=settings.store is not None)
        self._directories = slot.container.get(DirectoryManager)
        self._checkpoints = CheckpointStore(
            self._directories.checkpoints, uploads, ObjectStore.of(settings)
        )
        self._outbox = Outbox(settings.home, uploads)
        self._keeper = LeaseKeeper()
        self._wandb = slot.container.get(WandbManager)
        self._data = slot.container.get(DataManager)
        judge = ErrorJudge(
            slot.record,
            slot.cuda,
            slot.health,
            slot.streak,
            slot.studies,
            slot.refusals,
            slot.drain.is_set,
        )
        self._objectives = ObjectiveCalls(settings, slot.container, judge, on_error)
        self._num_trials = 0
        #: how this process was before its first trial
        self._surroundings: Surroundings | None = None

    def __enter__(self) -> Self:
        self._keeper.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._keeper.__exit__()

    def wake(self) -> None:
        """End what this process does while it idles; to be called before a lease begins to run."""
        self._keeper.leave()

    def run(self, claimed: Claimed) -> Outcome:
        """Train under the lease; see to the rest without it."""
        held = self._hold(claimed)
        try:
            return self._run(claimed, held)
        finally:
            self._num_trials += 1
            self._tidy()

    def _tidy(self) -> None:
        """Tidy up after a trial; what has to wait is done when this process idles by then."""
        tensors = self._slot.container.get(TensorManager)
        tensors.tidy()
        if tensors.seconds_to_wait() < math.inf:
            self._keeper.keep(_idle_rounds(tensors))

    def _hold(self, claimed: Claimed) -> HeldLease:
        spec = claimed.spec
        held = HeldLease(
            claimed.leases,
            claimed.hint.number,
            claimed.grant,
            sent_at=claimed.sent_at,
            times=self._times,
            keeper=self._keeper,
            is_draining=self._slot.drain.is_set,
            leave_word=self._leave_word,
        )
        held.progress_timeout = spec.progress_timeout * self._settings.time_scale
        if spec.trial_timeout is not None:
            held.time_out(spec.trial_timeout, self._settings.time_scale)
        return held

    def _leave_word(self, reason: str) -> None:
        """Tell the cleaner why this process ends, in the middle of a trial that stands still."""
        with suppress(redis.RedisError):  # then it is said that the process died
            self._slot.record.update(last_word=reason, charge=Charge.FAILURE.value)

    def _run(self, claimed: Claimed, held: HeldLease) -> Outcome:
        end = self._end_of(claimed, held)
        held.end_in_place = end.in_place_of_objective
        held.ripen(claimed.let_others_go_on)
        self._start_wandb(end)
        surroundings = self._surroundings = self._surroundings or Surroundings()
        with held, self._printing(claimed.attempt):
            self._objectives.call(end, surroundings, claimed.root)
        # W&B may take as long as it likes to finish it; and what is no short trial may have told
        # of its end only after a while, and leave much behind
        if self._wandb.has_run or lease_clock() - claimed.sent_at > YOUNG_SECONDS:
            claimed.let_others_go_on()
        outcome, lasting = self._leave(end, surroundings)
        self._judge_device(end)
        return self._fit_for_next(outcome, lasting)

    def _end_of(self, claimed: Claimed, held: HeldLease) -> AttemptEnd:
        return AttemptEnd(
            self._handle(claimed, held),
            held,
            claimed.hint,
            streak=self._slot.streak,
            started_at=claimed.sent_at,
            owner=self._slot.record.identity,
            outbox=self._outbox,
            checkpoints=self._checkpoints,
            hints=self._slot.hints,
            times=self._times,
            code=self._slot.code.facts(claimed.spec, claimed.root),
            is_draining=self._slot.drain.is_set,
            is_last=lambda: not self._wandb.has_run,
        )

    def _handle(self, claimed: Claimed, held: HeldLease) -> FleetTrial:
        spec = claimed.spec

        def note_first_step() -> None:
            held.note_first_step()
            log.debug(
                "first_training_step",
                seconds=round(lease_clock() - claimed.sent_at, 4),
                warm=self._num_trials > 0,
            )

        return FleetTrial(
            spec,
            held,
            self._slot.studies,
            self._checkpoints,
            self._directories.draft_directory(spec.name, held.number, held.token),
            self._times.verdict,
            note_first_step,
            Preparation(self._show_activity, self._times.beat / 2),
            self._settings.storage_of(spec.name),
            self._wandb,
            self._settings.slots or 1,
        )

    def _show_activity(self, activity: str | None) -> None:
        with suppress(redis.RedisError):  # the lease tells that it is away
            self._slot.record.update(activity=activity)

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
            outcome = end.leave()
            return outcome, surroundings.restore(spared=self._data.end_trial())
        finally:
            self._wandb.finish(end.exit_code)
            record = self._slot.record
            write = record.note if end.has_freed else record.update
            write(**AT_NO_TRIAL)

    def _judge_device(self, end: AttemptEnd) -> None:
        """Note what the attempt says for, or against, what it ran on."""
        if end.has_broken_device:
            self._slot.health.note_loss(end.trial.study_name, end.trial.number)
        elif end.exit_code == 0:
            self._slot.health.note_success()

    def _fit_for_next(self, outcome: Outcome, lasting: Collection[str]) -> Outcome:
        """What becomes of the message, and of this process if it cannot run another trial."""
        cuda = self._slot.cuda
        if outcome is Outcome.ENDED and cuda.check() is not None:
            log.error("cuda_broken", reason=cuda.trouble, hint="a fresh process is started")
            return Outcome.CUDA_BROKEN
        if not lasting or outcome is not Outcome.ENDED:
            return outcome
        log.warning("process_ends", reasons=lasting, hint="a fresh one takes its place")
        return Outcome.ENDS_PROCESS


def _idle_rounds(tensors: TensorManager) -> Iterator[float]:
    """What is done while no trial runs, with the seconds to wait before it goes on."""
    while (seconds := tensors.seconds_to_wait()) < math.inf:
        yield seconds
        tensors.give_freed_back()
    yield math.inf
