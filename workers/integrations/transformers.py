"""`transformers.Trainer` in a trial: it reports, is pruned, drains, and goes on where it stopped.

    def objective(trial):
        fleet = FleetCallback(trial, metric="accuracy")
        trainer = Trainer(model, TrainingArguments(...), ..., callbacks=[fleet])
        trainer.train(resume_from_checkpoint=fleet.resume_from_checkpoint)
        return fleet.values[-1]

Invariant: a checkpoint is taken only where the Trainer can go on from it to the bit: between two
steps, and never between the last step of an epoch and what is due at the epoch's end.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import optuna
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from workers.disk import durable
from workers.integrations.transformers_progress import (
    ends_epoch,
    is_last,
    move_best,
    place_of,
    restore_callbacks,
    step_of,
    why_not_to_the_bit,
)
from workers.logs import get_logger
from workers.protocol.errors import DrainRequested, ObjectiveError
from workers.trials.finite import FiniteWatch, best_value, trained
from workers.trials.handle import FleetTrial
from workers.trials.training_loop import NOT_TO_THE_BIT

log = get_logger(__name__)

_ONE_TRAINING: Final = (
    "FleetCallback is for one training of a trial: a second one would go on from the checkpoint of"
    " the first, or resume as that; train the others without it, or make each a trial of its own"
)

#: Checkpoints that the Trainer itself keeps, unless it is told; the best one stays besides.
_KEPT: Final = 2


class FleetCallback(TrainerCallback):
    """Has one training by `transformers.Trainer` be a trial.

    Outputs of the Trainer go to `trainer/` in the trial's result directory, whatever `output_dir`
    says; its checkpoints are dropped when the training has ended. With `report_to="wandb"` the
    Trainer logs to the trial's own W&B run; without, its logs become curves there, too.

    Args:
        trial: What the objective was given.
        metric: What is reported after each evaluation, with the optimizer step as the step; with or
            without `eval_`. By default `metric_for_best_model`, else the loss.
        checkpoint_seconds: After which a checkpoint is taken at the next step, besides those that
            the Trainer takes by `save_strategy`.
    """

    def __init__(
        self, trial: FleetTrial, *, metric: str | None = None, checkpoint_seconds: float = 30.0
    ) -> None:
        self._trial = trial
        trial.leave_out(f"{self.output_dir.name}/checkpoint-*")
        self._metric = metric
        self._checkpoint_seconds = checkpoint_seconds
        self._saved_at = time.monotonic()
        self._saved_step = 0
        self._is_training = False
        self._is_resumed = False
        self._has_own_run = False
        self._is_postponed = False
        self._is_between_epochs = False
        self._interrupt: DrainRequested | None = None
        self._unmeasured: list[str] = []
        self._finite = FiniteWatch()
        #: The metric after each evaluation of this training, those of earlier attempts included.
        self.values: list[float] = []

    @property
    def output_dir(self) -> Path:
        """Where the Trainer leaves its files; what is there when the trial ends is its result."""
        return self._trial.result_directory / "trainer"

    @property
    def resume_from_checkpoint(self) -> str | None:
        """Where `Trainer.train` is to go on, or None to begin; to be given to it each time."""
        self._is_resumed = True
        kept = self._trial.load_checkpoint_files()
        if kept is None:
            return None
        for each in kept.iterdir():
            durable.remove(self.output_dir / each.name)
            self.output_dir.mkdir(parents=True, exist_ok=True)
            durable.link_tree(each, self.output_dir / each.name)
        newest = max(self.output_dir.glob("checkpoint-*"), key=step_of)
        move_best(newest, self.output_dir)
        return str(newest)

    @property
    def best_value(self) -> float:
        """The best of `values`, as the study sees it.

        Raises:
            ObjectiveError: Nothing was evaluated, or one is NaN.
        """
        if not self.values:
            raise ObjectiveError("nothing was evaluated: set eval_strategy, or call evaluate()")
        return best_value(self.values, self._trial.spec.all_directions[0])

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Have the Trainer's files lie where the trial's do, and its logs reach the trial's run."""
        with suppress(OSError):  # made by the Trainer just now: with nothing in it, it goes
            if Path(args.output_dir).name == "trainer_output":
                Path(args.output_dir).rmdir()
        args.output_dir = str(self.output_dir)
        args.logging_nan_inf_filter = False  # a loss that is none is to be seen
        if args.save_only_model:
            log.info("save_only_model_unset", hint="a trial that is interrupted could not go on")
            args.save_only_model = False
        if args.save_total_limit is None:
            args.save_total_limit = _KEPT
        self._has_own_run = "wandb" in args.report_to
        if self._has_own_run and self._trial.wandb_run() is None:
            os.environ["WANDB_MODE"] = "disabled"  # put back after the trial

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Take up what earlier attempts have measured.

        Raises:
            ObjectiveError: The trial has been trained before, or the Trainer and the study disagree
                on which side of the metric is better.
        """
        self._trial.begin_training(_ONE_TRAINING)
        if args.eval_strategy != "no":
            self._check_direction(args)
        if not self._is_resumed and self._trial.attempt > 1:
            log.warning(
                "begins_anew",
                hint="trainer.train(resume_from_checkpoint=callback.resume_from_checkpoint)",
            )
        self._is_training = True
        if state.global_step:
            args.eval_on_start = False  # that was before the first step
            if args.restore_callback_states_from_checkpoint:
                # the Trainer restored its control as well: what that says is due was done
                control.should_save = control.should_evaluate = control.should_log = False
            else:
                restore_callbacks(state)
            if (reason := why_not_to_the_bit(args, state, train_dataloader)) is not None:
                self._trial.set_user_attr(NOT_TO_THE_BIT, reason)
        self._saved_step, self._saved_at = state.global_step, time.monotonic()
        name = self._name_of_metric(args)
        self.values = [float(entry[name]) for entry in state.log_history if name in entry]

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Note that an epoch begins."""
        self._is_between_epochs = False

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Say that a step is about to be made.

        Raises:
            DrainRequested: Nothing was trained since the last checkpoint.
            ObjectiveError: The evaluations do not give the metric.
        """
        if self._unmeasured:
            self._refuse_metric(args)
        self._progress(state)
        if self._interrupt is not None and state.global_step == self._saved_step:
            raise self._interrupt

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Say that part of a step was made."""
        self._progress(state)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Say that an evaluation goes on."""
        if self._is_training:
            self._progress(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Have a checkpoint taken if one is due, and none between a last step and what follows it.

        The Trainer, too, may want one there, of its last step or by `save_steps`.
        """
        self._progress(state)
        if ends_epoch(state) or is_last(state):
            self._is_postponed = control.should_save
            control.should_save = False
        elif self._is_save_due():
            control.should_save = True
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Have a checkpoint taken if one is due, after what is evaluated now."""
        self._is_between_epochs = True
        is_due = self._is_postponed or self._is_save_due()
        control.should_save, self._is_postponed = control.should_save or is_due, False
        return control

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **_: Any,
    ) -> None:
        """Keep the checkpoint that the Trainer wrote, and the best one with it.

        Raises:
            DrainRequested: The trial is to stop, and can go on from here.
            ObjectiveError: A weight is no finite number: nobody could go on from here.
        """
        if control.should_training_stop and not is_last(state):
            return  # stopped early: from here the Trainer would make one step too many
        if (is_last(state) or self._is_between_epochs) and not ends_epoch(state):
            return  # so it would here, or take the end of a short epoch for its middle
        self._look_at(model, state)
        paths = [self.output_dir / f"checkpoint-{state.global_step}"]
        best = state.best_model_checkpoint
        if best is not None and Path(best).is_dir() and Path(best).name != paths[0].name:
            paths.append(Path(best))
        self._trial.save_checkpoint_files(state.global_step, *paths)
        self._saved_step, self._saved_at = state.global_step, time.monotonic()
        if self._interrupt is not None:
            raise self._interrupt

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        model: torch.nn.Module | None = None,
        **_: Any,
    ) -> None:
        """Report the metric.

        Raises:
            optuna.TrialPruned: The pruner gave the trial up.
            ObjectiveError: The metric or a weight is no finite number: the training has diverged.
        """
        name, found = self._name_of_metric(args), metrics or {}
        if not self._is_training:
            return
        if name not in found:  # of several data sets, another one may give it, or has
            self._unmeasured = [] if self.values else sorted(found)
            return
        self._unmeasured = []
        self._look_at(model, state)
        self._finite.note(name, float(found[name]), place_of(state))
        self._take(float(found[name]), state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Look at the losses, and pass the logs on.

        Raises:
            ObjectiveError: One, or the gradients, is no finite number: the training has diverged.
        """
        numbers = {
            name: float(value)
            for name, value in (logs or {}).items()
            if isinstance(value, int | float)
        }
        if self._is_training:
            place = place_of(state, numbers.get("learning_rate"))
            for name, value in numbers.items():
                # in fp16 the gradients overflow now and then, until the scale fits
                if _is_loss(name) or (name == "grad_norm" and not args.fp16):
                    self._finite.note("the loss" if name == "loss" else name, value, place)
        if not self._has_own_run:
            self._trial.log(numbers, state.global_step)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **_: Any,
    ) -> None:
        """See that there is something to be measured; checkpoints are no result.

        Raises:
            ObjectiveError: The evaluations do not give the metric, or a weight is no finite number.
        """
        self._is_training = False
        self._trial.end_training()
        self._look_at(model, state)
        if self._unmeasured:
            self._refuse_metric(args)

    def _take(self, value: float, step: int) -> None:
        """Note a value of the metric, and report it unless an attempt before did.

        A drain waits for the checkpoint that follows.
        """
        self.values.append(value)
        is_known = self._trial.last_step is not None and step <= self._trial.last_step
        if is_known or len(self._trial.spec.all_directions) > 1:
            return
        self._trial.defer_drain(is_deferred=True)
        try:
            self._trial.report(value, step)
        finally:
            self._trial.defer_drain(is_deferred=False)
        if self._trial.should_prune():
            raise optuna.TrialPruned(f"pruned after step {step}")

    def _look_at(self, model: torch.nn.Module | None, state: TrainerState) -> None:
        """See that the weights are numbers, before what is measured or saved of them counts."""
        if model is None:  # a subclass did not pass it on
            return
        self._finite.look_at(trained(model), place_of(state))

    def _progress(self, state: TrainerState) -> None:
        """Say how far training is; a drain is remembered until there is a checkpoint."""
        try:
            self._trial.progress(state.global_step)
        except DrainRequested as interrupt:
            self._interrupt = interrupt

    def _is_save_due(self) -> bool:
        is_old = time.monotonic() - self._saved_at >= self._checkpoint_seconds
        return is_old or self._interrupt is not None

    def _name_of_metric(self, args: TrainingArguments) -> str:
        name = self._metric or args.metric_for_best_model or "loss"
        return name if name.startswith("eval_") else f"eval_{name}"

    def _check_direction(self, args: TrainingArguments) -> None:
        """See that study and Trainer mean the same side, as far as the Trainer knows one."""
        name, direction = self._name_of_metric(args), self._trial.spec.all_directions[0]
        is_greater_better = None
        if name == f"eval_{(args.metric_for_best_model or '').removeprefix('eval_')}":
            is_greater_better = args.greater_is_better
        elif name == "eval_loss":
            is_greater_better = False
        if is_greater_better is not None and is_greater_better != (direction == "maximize"):
            better = "greater" if is_greater_better else "lower"
            raise ObjectiveError(
                f"{name} is better when {better}, and the study is to {direction}; name another"
                " metric, as FleetCallback(trial, metric=...), or set the study's direction or"
                " greater_is_better"
            )

    def _refuse_metric(self, args: TrainingArguments) -> None:
        raise ObjectiveError(
            f"metric {self._name_of_metric(args)!r}: the evaluations give"
            f" {', '.join(self._unmeasured)}; name one of them, as FleetCallback(trial,"
            " metric=...), or let compute_metrics return it"
        )


def _is_loss(name: str) -> bool:
    """Whether the Trainer logs a loss by this name, of whichever data set."""
    return name in {"loss", "train_loss"} or (name.startswith("eval_") and name.endswith("_loss"))
