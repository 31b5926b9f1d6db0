"""The `Trial` that an objective sees: Optuna's interface, spoken to the orchestrator by message."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workers.coordination.studies import Studies
from workers.disk.checkpoints import CheckpointStore
from workers.logs import get_logger
from workers.managers import WandbManager
from workers.protocol.errors import ObjectiveError
from workers.protocol.parameters import merge_params
from workers.protocol.plain import MAX_STEP, as_number, as_step
from workers.protocol.spec import StudySpec
from workers.trials.checkpointing import Checkpointing
from workers.trials.checkpoints_of_trial import CheckpointsOfTrial
from workers.trials.held_lease import HeldLease
from workers.trials.next_rung import NextRung
from workers.trials.preparation import Preparation
from workers.trials.questions import Questions
from workers.trials.study_view import StudyView
from workers.trials.training_loop import TrainingLoop

log = get_logger(__name__)


class FleetTrial(CheckpointsOfTrial):
    """One attempt at a trial.

    Reports, suggestions and verdicts travel through the study's inbox to the orchestrator, which
    alone writes the Optuna storage; all of them carry the attempt's fencing token.
    """

    def __init__(
        self,
        spec: StudySpec,
        lease: HeldLease,
        studies: Studies,
        checkpoints: CheckpointStore,
        result_directory: Path,
        verdict_seconds: float,
        on_first_step: Callable[[], None] = lambda: None,
        preparation: Preparation | None = None,
        storage_url: str = "",
        wandb: WandbManager | None = None,
        num_slots: int = 1,
    ) -> None:
        self._questions = Questions(lease)
        super().__init__(
            lease,
            self._questions.ask,
            Checkpointing(spec.name, lease, checkpoints, num_slots),
            NextRung(spec, lease.grant.record),
        )
        self.spec = spec
        self._storage_url = storage_url
        self._wandb = wandb
        self.study_name = spec.name
        self.attempt = lease.grant.attempt
        #: Seeds this trial, the same in each attempt; in [0, 2**31).
        self.seed = spec.trial_seed(lease.number)
        #: Where this attempt may leave files; kept if the attempt's result is accepted.
        self.result_directory = result_directory
        self._studies = studies
        self._verdict_seconds = verdict_seconds
        self._on_first_step: Callable[[], None] | None = on_first_step
        self._preparation = preparation or Preparation()
        self._unjudged_step: int | None = None
        self._is_trained = False
        self._leftovers: str | None = None
        #: Reports that found the inbox full, since no orchestrator reads it.
        self.num_reports_left_out = 0
        #: The value of the highest reported step, which stands for a pruned trial.
        self.last_value = lease.grant.record.reported_value
        #: The highest step that any attempt has reported; None before the first report.
        self.last_step = lease.grant.record.reported_step

    @property
    def study(self) -> StudyView:
        """The study, to look at and to stop."""
        return StudyView(self.spec, self._studies, self._storage_url)

    @property
    def number(self) -> int:
        """The trial's number in its study, from 0."""
        return self._lease.number

    @property
    def config(self) -> dict[str, Any]:
        """The study's `config`, with this trial's parameters laid over it by dotted name."""
        return merge_params(self.spec.config, self._suggestions.stored)

    @property
    def user_attrs(self) -> dict[str, Any]:
        """What `set_user_attr` has set; stored with the trial's result."""
        return self._attributes.user_attrs

    @property
    def datetime_start(self) -> dt.datetime | None:
        """When this attempt was claimed, on the server's clock."""
        claimed_ms = self._lease.grant.record.claimed_at_ms
        return dt.datetime.fromtimestamp(claimed_ms / 1000).astimezone()

    @property
    def constraints(self) -> dict[str, float]:
        """What `set_constraint` has set."""
        return self._attributes.constraints

    def progress(self, step: int, *, total: int | None = None, examples: int = 0) -> None:
        """Say that training is about to make step `step`; call it before each.

        From the first call on, a training that makes no progress for the study's
        `progress_timeout` is ended and tried again; `report` and `save_checkpoint` are progress,
        too.

        Args:
            step: Its number.
            total: How many steps the whole training has; shown beside it.
            examples: How many examples the step before trained on; shown as a rate.

        Raises:
            UnsuitableValueError: One of these is no whole number from 0 to 2**53 - 1.
            DrainRequested: Save a checkpoint and let this pass.
            LeaseLost, TrialCancelled: Let this pass.
        """
        # else it would be found on its way to Redis, by the thread that keeps the lease
        is_plain = type(step) is int and 0 <= step < MAX_STEP
        whole = step if is_plain else as_step(step, "progress(step)")
        if total is not None:
            self._lease.total_steps = as_step(total, "progress(total)")
        if examples:
            self._lease.num_examples += as_step(examples, "progress(examples)")
        self._resumes = True
        self._check()
        self._lease.note_progress(whole)
        self._preparation.end()
        self._note_first_step()

    def preparing(self, what: str, done: int = 0, total: int = 0) -> None:
        """Say how far something has come that goes on before or between steps; often, if you like.

        It is progress, so that no `progress_timeout` ends it; it is shown by `ps` and `watch`, and
        logged now and then. Managers that build something take it to tell their progress:
        `data.text_classification(..., progress=trial.preparing)`.

        Args:
            what: What is counted, such as `rows read`.
            done: How much of it.
            total: Of how much; 0 if that is not known.

        Raises:
            DrainRequested, LeaseLost, TrialCancelled: Let this pass.
        """
        # first: what cannot stop at once, such as a compiler, is alive though it was told to
        self._lease.note_sign_of_life()
        self._lease.check()
        self._preparation.tell(what, done, total)

    def report(self, value: float, step: int) -> None:
        """Report an intermediate value, in any order of steps; the first one of a step counts.

        Args:
            value: A Python, NumPy or torch number; NaN and infinity are left to the pruner.
            step: Not negative.

        Raises:
            UnsuitableValueError: The value is no number, or the step no whole one; a `TypeError`.
            NotImplementedError: The study has several objectives; they cannot be pruned.
            LeaseLost: Somebody else may run the trial now.
            DrainRequested: The rung that the report before had reached is where it is paused.
        """
        if len(self.spec.all_directions) > 1:
            raise NotImplementedError("report is not supported with several directions")
        number = as_number(value, f"report(step={step!r:.80})")
        whole = as_step(step)
        self._check()
        self._note_first_step()
        self._lease.note_sign_of_life()
        leases, token = self._lease.leases, self._lease.token
        status = self._lease.patiently(lambda: leases.report(self.number, token, whole, number))
        if status == "LOST":
            self._lease.give_up()
        if status == "FULL":
            self._leave_out(whole)
        if self.last_step is None or whole > self.last_step:
            self.last_step, self.last_value = whole, number
        self.next_rung.note(whole, number)
        if status != "OLD":  # of which the verdict was asked before
            self._unjudged_step = whole if status == "OK" else None

    def _leave_out(self, step: int) -> None:
        if not self.num_reports_left_out:
            log.warning("report_left_out", step=step, hint="no orchestrator reads the inbox")
        self.num_reports_left_out += 1

    def should_prune(self) -> bool:
        """Whether the pruner, knowing all reports so far, gives this trial up.

        Waits for the orchestrator's verdict on the last report, so that equal runs prune equally;
        if none comes within some seconds, training goes on.

        Raises:
            DrainRequested: Of a study that promotes: the trial has reached its rung, and has shown
                no sign that it could go on from a checkpoint. False there in all other cases.
        """
        if not self._resumes:
            self.next_rung.check()
        if not self.spec.pruner.prunes or self._unjudged_step is None:
            return False
        step, self._unjudged_step = self._unjudged_step, None
        return self._questions.verdict(step, self._verdict_seconds)

    def set_user_attr(self, key: str, value: Any) -> None:
        """Attach a fact to the trial; stored with its result, as plain JSON.

        Args:
            key: Up to 512 characters; `trialfleet:` is the fleet's own.
            value: What `workers.protocol.plain` has a rule for.

        Raises:
            UnsuitableValueError: The value has no plain form, or all of them are over 4 MiB.
        """
        self._attributes.set_user_attr(key, value)

    def set_constraint(self, key: str, value: float) -> None:
        """Set a constraint; above 0 it is violated.

        Raises:
            UnsuitableValueError: The value is no finite number.
        """
        self._attributes.set_constraint(key, value)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add points to the curves of the trial's W&B run, where it has one; never waits.

        Args:
            values: By name.
            step: Of the training.
        """
        if self._wandb is not None:
            self._wandb.log(values, step)

    def wandb_run(self) -> Any:
        """The trial's `wandb.Run`, begun by now; None where the trial has none.

        It is finished when the trial ends. It may take as long to begin as W&B takes to answer.
        """
        return None if self._wandb is None else self._wandb.begin()

    def training(self, state: Any, *, checkpoint_seconds: float = 60.0) -> TrainingLoop:
        """A training loop that resumes where it was: `with trial.training(state) as run:`.

        Args:
            state: What has `state_dict` and `load_state_dict` (modules, optimizers, schedulers,
                scalers, an `Accelerator`), or a mapping of such things, generators and data.
            checkpoint_seconds: Between two checkpoints; a drain saves one at the next step.

        Raises:
            ObjectiveError: It is the trial's second one, or the state could not be put back.
            UnsuitableValueError: Something in the state cannot be saved.
        """
        self.begin_training(
            "trial.training() once a trial: a resumed attempt would not know which one it was"
            " in; count the epochs of both in one loop"
        )
        self.end_training()
        return TrainingLoop(self, self._lease, state, checkpoint_seconds)

    def begin_training(self, refusal: str) -> None:
        """For trainers: see that this is the trial's only training that resumes.

        Args:
            refusal: What to tell of a second one, which would take up the checkpoint of the first.

        Raises:
            ObjectiveError: Another one has ended before.
        """
        if self._is_trained:
            raise ObjectiveError(refusal)

    def end_training(self) -> None:
        """For trainers: from now on, a checkpoint of the trial is that of a training that ended."""
        self._is_trained = True
        self.drop_leftovers()

    def leave_out(self, leftovers: str) -> None:
        """For trainers: name what is no result, however the training ends.

        Args:
            leftovers: Folders below `result_directory`, as a pattern.
        """
        self._leftovers = leftovers

    def drop_leftovers(self) -> None:
        """Remove what is no result; from then on, nothing is left out."""
        leftovers, self._leftovers = self._leftovers, None
        if leftovers is not None:
            for path in self.result_directory.glob(leftovers):
                shutil.rmtree(path, ignore_errors=True)

    def defer_drain(self, *, is_deferred: bool) -> None:
        """Have a drain wait, or no longer, for a point at which training can be resumed.

        For trainers: between such points `progress` and `report` do not raise `DrainRequested`.
        """
        self._lease.defers_drain = is_deferred

    def best_value(self) -> float | None:
        """The study's best value so far, of its first objective."""
        value: float | None = self._studies.facts.get(self.study_name, "best_value")
        return value

    def _note_first_step(self) -> None:
        callback, self._on_first_step = self._on_first_step, None
        if callback is not None:
            callback()
