"""The loop of a training: steps, evaluations, checkpoints, and going back where it diverged.

Invariant: at every call of `trial.progress` the training's state is whole, so that a checkpoint
taken there goes on, on the CPU to the bit, as if nothing had happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from typing import Final

import optuna
import torch

from workers.logs import get_logger
from workers.managers import adapters
from workers.managers.tokenized import Batch
from workers.protocol.errors import DrainRequested, ObjectiveError
from workers.protocol.finetune import FinetuneConfig
from workers.protocol.tasks import TASKS
from workers.trials.divergence import Diverged
from workers.trials.finetune.beginning import Beginning
from workers.trials.finetune.evaluation import Evaluation
from workers.trials.finetune.feed import Fed, Feed
from workers.trials.finetune.forward import Forward
from workers.trials.finetune.needs import Managers
from workers.trials.finetune.plan import TrainingPlan
from workers.trials.finetune.result import TrainingResult, leave_result
from workers.trials.finetune.schedule import slowed
from workers.trials.finetune.step_log import StepLog
from workers.trials.finetune.stopping import best_of, is_exhausted
from workers.trials.finetune.tasks import Task
from workers.trials.handle import FleetTrial

log = get_logger(__name__)

#: What to do about a training that diverges, by `on_divergence`.
_WAY_OUT: Final = {
    "fail": "lower learning_rate or max_grad_norm, or let on_divergence be skip or rollback",
    "skip": "lower learning_rate or max_grad_norm, or let on_divergence be rollback",
    "rollback": "lower learning_rate or max_grad_norm; of texts that cannot be learned from, let"
    " on_divergence be skip",
}


class Training:
    """One training of one trial.

    Args:
        trial: Whose training it is.
        config: The trial's settings.
        task: What is learned.
        managers: What it is learned with.
    """

    def __init__(
        self, trial: FleetTrial, config: FinetuneConfig, task: Task, managers: Managers
    ) -> None:
        self._trial = trial
        self._config = config
        self._task = task
        self._managers = managers
        self._metric = trial.spec.metrics[0]
        self._direction = trial.spec.all_directions[0]
        self._may_leave_model = config.save_model != "none"
        seed = trial.seed if config.seed is None else config.seed
        beginning = Beginning(trial, config, task, managers)
        self._data = beginning.examples()
        self._feed = Feed(task, self._data, config, managers)
        self._plan = TrainingPlan(managers.batches, self._data.train, config, seed=seed)
        # here: data that have yet to be tokenised must not change what the model draws
        managers.cuda.seed(seed)
        self._state = beginning.state(self._data, self._plan.num_steps)
        #: walked through once: in a small model, to find them takes a fiftieth of a step
        self._weights = tuple(self._state.model.parameters())
        self._compilation = beginning.compilation(self._state)
        self._forward = Forward(self._state.model, self._state.precision, self._compilation)
        self._evaluation = Evaluation(
            self._state.model,
            self._forward,
            task,
            task.meter(managers.metrics, self._data),
            self._feed,
            self._state.evaluation_passes,
        )
        self._throughput = managers.metrics.throughput(self._clock)
        self._steps = StepLog(
            config.log_every_steps, managers.cuda.device, managers.wandb.log, self._clock
        )
        self._saved_at = time.monotonic()
        #: the step of this attempt's last checkpoint; of one step, it saves one
        self._saved_step: int | None = None

    def run(self) -> dict[str, float]:
        """Train from the last checkpoint, or from nothing, to the end."""
        with nullcontext() if self._compilation is None else self._compilation.open():
            return self._run()

    def _run(self) -> dict[str, float]:
        self._resume()
        try:
            while not self._is_trained():
                pass
        except DrainRequested:
            with suppress(Diverged):  # the next attempt finds that out, from the checkpoint before
                self._save()
            raise
        counted = self._counted()
        self._leave_word(counted)
        self._leave_result(counted)
        return {name: counted[name] for name in TASKS[self._config.task].metrics if name in counted}

    def _clock(self) -> float:
        """Seconds, which stand still while the model is compiled: rates are of training."""
        compiling = 0.0 if self._compilation is None else self._compilation.seconds
        return time.perf_counter() - compiling

    def _is_trained(self) -> bool:
        """Train to the end; False where the training diverged, and has to go on from before.

        Raises:
            ObjectiveError: It diverged for good.
        """
        try:
            self._train()
        except Diverged as error:
            self._roll_back(error)
            return False
        return True

    def _train(self) -> None:
        if self._is_evaluation_due():  # a drain came between the step and its evaluation
            self._evaluate()
        if self._is_exhausted():
            return
        with self._feed.training(self._plan.from_step(self._state.step)) as batches:
            num_steps, num_rows = self._plan.num_steps, 0
            for fed in batches:
                self._trial.progress(self._state.step, total=num_steps, examples=num_rows)
                self._train_step(fed)
                self._trial.defer_drain(is_deferred=False)
                num_rows = len(fed.batch["labels"])
                if self._is_evaluation_due():
                    self._evaluate()
                    if self._is_exhausted():
                        return
                if self._is_checkpoint_due():
                    self._save()

    def _train_step(self, fed: Fed) -> None:
        batch = fed.batch
        state = self._state
        is_over_rows = self._task.is_over_rows
        share = self._plan.share(len(batch["labels"])) if is_over_rows else 1.0
        loss = state.accumulator.run(
            batch,
            self._loss_of,
            self._backward(share),
            state.optimizer.zero_grad,
            self._task.weight,
        )
        norm = state.precision.step(
            state.optimizer,
            self._weights,
            self._config.max_grad_norm,
            guard=loss if self._config.on_divergence == "skip" else None,
        )
        rate = state.rate
        state.schedule.stepped()
        self._throughput.add(len(batch["labels"]))
        state.step += 1
        state.losses.note(state.step, rate, loss, norm, share)
        self._steps.note(state.step, rate, loss, norm, fed.num_tokens, share)

    def _backward(self, share: float) -> Callable[[torch.Tensor], None]:
        """Adds the gradients of a mean loss, by what it counts in its step."""
        backward = self._state.precision.backward
        return backward if share == 1.0 else lambda loss: backward(loss * share)

    def _loss_of(self, batch: Batch) -> torch.Tensor:
        return self._task.loss(self._forward(batch), batch)

    def _is_evaluation_due(self) -> bool:
        return self._plan.evaluation_at(len(self._state.history)) == self._state.step

    def _is_checkpoint_due(self) -> bool:
        if self._config.checkpoint_every is not None:
            return self._plan.has_checkpoint_at(self._state.step)
        return time.monotonic() - self._saved_at >= self._config.checkpoint_interval_seconds

    def _is_exhausted(self) -> bool:
        """Whether the study wants no more of a training that gets no better."""
        values = (each[self._metric] for each in self._state.history)
        return is_exhausted(values, self._direction, self._config.early_stopping)

    def _counted(self) -> Mapping[str, float]:
        """The evaluation that is the trial's result."""
        if self._config.keeps_best:
            return best_of(self._state.history, self._metric, self._direction)
        return self._state.history[-1]

    def _evaluate(self) -> None:
        """Measure, report, and ask whether to go on.

        Raises:
            optuna.TrialPruned: The pruner gave the trial up.
            Diverged: There is nothing to be measured.
        """
        state = self._state
        texts_per_second = self._throughput.take()
        train_loss = state.losses.mean()
        self._look_at_weights()
        with self._steps.apart():
            measured = self._measure()
        number = len(state.history) + 1
        value = measured[self._metric]
        if len(self._trial.spec.all_directions) == 1:
            self._trial.report(value, number)
        if state.best.update(value) and self._config.keeps_best and self._may_leave_model:
            state.keep_weights()
        state.schedule.measured(value)
        entry: dict[str, float] = {
            "step": state.step,
            **measured,
            "train_loss": train_loss,
            "learning_rate": state.rate,
            "texts_per_second": round(texts_per_second, 1),
        }
        state.losses.forget_mean()
        state.history.append(entry)
        self._managers.wandb.log(entry, step=state.step)
        log.debug("evaluated", evaluation=number, **entry)
        if self._trial.should_prune():
            raise optuna.TrialPruned(f"pruned after evaluation {number}")
        if self._config.on_divergence == "rollback" and state.step < self._plan.num_steps:
            self._save()  # what was reported is not taken back
        self._throughput.take()

    def _measure(self) -> dict[str, float]:
        """What an evaluation finds.

        Raises:
            Diverged: One of the measures is no finite number.
        """
        step = self._state.step
        measured = self._evaluation.measure(lambda: self._trial.progress(step))
        for name, measure in measured.items():
            if not math.isfinite(measure):
                raise self._state.diverged(f"{name} on the held-out texts is {measure}")
        return measured

    def _save(self) -> None:
        """Save a checkpoint, if there is something to save.

        Raises:
            Diverged: Nobody could go on from it.
        """
        if self._state.step in {0, self._saved_step}:
            return
        self._state.losses.look()
        self._look_at_weights()
        self._save_as_it_is()

    def _look_at_weights(self) -> None:
        if not self._state.has_finite_weights():
            raise self._state.diverged("a weight is no finite number")

    def _save_as_it_is(self) -> None:
        self._trial.save_checkpoint(self._state.step, self._state.state_dict())
        self._saved_at, self._saved_step = time.monotonic(), self._state.step
        log.debug("checkpoint_saved", step=self._state.step)

    def _resume(self) -> None:
        state = self._trial.load_checkpoint()
        if state is not None:
            self._state.load_state_dict(state)
            log.debug("resumed", step=self._state.step, of=self._plan.num_steps)
        elif self._config.on_divergence == "rollback":
            self._save_as_it_is()  # something to roll back to

    def _roll_back(self, error: Diverged) -> None:
        """Go on from the last checkpoint, more slowly.

        Raises:
            ObjectiveError: The study does not want that, or it was done often enough.
        """
        mode = self._config.on_divergence
        count = self._state.num_rollbacks + 1
        if mode != "rollback":
            raise ObjectiveError(f"{error}; {_WAY_OUT[mode]}") from error
        if count > self._config.max_divergences:
            raise ObjectiveError(
                f"{error}, after it was rolled back {count - 1} times; {_WAY_OUT[mode]}"
            ) from error
        state = self._trial.load_checkpoint()
        if state is None:
            raise ObjectiveError(f"{error}, and there is no checkpoint to go back to") from error
        self._state.load_state_dict(slowed(state, 0.5 ** (count - state.get("rollbacks", 0))))
        self._state.num_rollbacks = count
        self._state.optimizer.zero_grad()
        self._begin_anew()
        step, rate = self._state.step, self._state.rate
        log.warning("rolled_back", reason=str(error), to_step=step, learning_rate=rate)

    def _begin_anew(self) -> None:
        """Count from where the training was rolled back to."""
        self._steps.begin()
        self._throughput.take()
        self._saved_at, self._saved_step = time.monotonic(), self._state.step
        # of this step there is a checkpoint, without the lower rate: a drain waits for the next
        self._trial.defer_drain(is_deferred=True)

    def _leave_word(self, counted: Mapping[str, float]) -> None:
        """Attach to the trial what it went through, should its value be looked at twice."""
        is_early = self._state.step < self._plan.num_steps
        for name, count in [
            ("batches_left_out", self._state.losses.num_left_out),
            ("rollbacks", self._state.num_rollbacks),
            ("stopped_early_at", self._state.step if is_early else 0),
            ("best_step", int(counted["step"]) if self._config.keeps_best else 0),
        ]:
            if count:
                self._trial.set_user_attr(name, count)

    def _leave_result(self, counted: Mapping[str, float]) -> None:
        is_wanted = self._is_model_wanted(counted[self._metric])
        if is_wanted and self._state.best_weights is not None:
            adapters.load_trained_state(self._state.model, self._state.best_weights)
        result = TrainingResult(
            self._data.classes,
            self._state.history,
            counted,
            self._data.tokenizer,
            self._state.model if is_wanted else None,
        )
        leave_result(self._trial, result, self._managers.directories, self._managers.models)

    def _is_model_wanted(self, value: float) -> bool:
        mode, spec = self._config.save_model, self._trial.spec
        if mode == "auto":
            # a trial may be second best, or best by another metric than the first
            has_one_best = spec.keep.num_models is None and len(spec.all_directions) == 1
            mode = "best" if has_one_best else "all"
        if mode == "best":
            return self._state.best.is_better(value, than=self._trial.best_value())
        return mode == "all"
