"""The built-in objective `finetune`: trains a text classifier as the study's `config` says.

Invariant: at every call of `trial.progress` the training's state is whole, so that a checkpoint
taken there goes on, on the CPU to the bit, as if nothing had happened.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import optuna
import torch
from pydantic import ValidationError
from torch.nn import functional

from workers.logs import get_logger
from workers.managers import (
    AMPManager,
    BatchManager,
    CUDAManager,
    DataManager,
    DirectoryManager,
    MetricsManager,
    ModelManager,
    TensorManager,
    WandbManager,
)
from workers.managers.data import TextClassificationData
from workers.managers.tokenized import Batch, TokenizedTexts
from workers.protocol.errors import DrainRequested, ObjectiveError, UnfitModelError, UnfitStudyError
from workers.protocol.finetune import DECIDES_THE_MODEL, METRICS, FinetuneConfig
from workers.trials.divergence import Diverged, LossWatch
from workers.trials.handle import FleetTrial
from workers.trials.training_plan import (
    RemainingBatches,
    build_optimizer,
    build_scheduler,
    evaluation_steps,
    slowed,
)
from workers.trials.training_result import TrainingResult, leave_result

log = get_logger(__name__)

#: What to do about a training that diverges, by `on_divergence`.
_WAY_OUT: Final = {
    "fail": "lower learning_rate or max_grad_norm, or let on_divergence be skip or rollback",
    "skip": "lower learning_rate or max_grad_norm, or let on_divergence be rollback",
    "rollback": "lower learning_rate or max_grad_norm; of texts that cannot be learned from, let"
    " on_divergence be skip",
}


@dataclass(frozen=True, slots=True)
class Managers:
    """The managers that a training uses."""

    data: DataManager
    models: ModelManager
    amp: AMPManager
    batches: BatchManager
    metrics: MetricsManager
    cuda: CUDAManager
    tensors: TensorManager
    directories: DirectoryManager
    wandb: WandbManager


def finetune(
    trial: FleetTrial,
    data: DataManager,
    models: ModelManager,
    amp: AMPManager,
    batches: BatchManager,
    metrics: MetricsManager,
    cuda: CUDAManager,
    tensors: TensorManager,
    directories: DirectoryManager,
    wandb: WandbManager,
) -> dict[str, float]:
    """Train and evaluate one classifier.

    Reports the study's metric after each evaluation, with the evaluation's number, from 1, as the
    step; leaves `metrics.json` and, as `save_model` says, the model.

    Returns:
        `accuracy`, `f1` and `loss` on the held-out texts at the end of the training.

    Raises:
        ObjectiveError, InvalidInputError: The trial's settings cannot be trained.
        optuna.TrialPruned: The pruner gave the trial up.
        TrialInterrupt: The trial was ended from outside; on a drain, a checkpoint was saved.
    """
    managers = Managers(data, models, amp, batches, metrics, cuda, tensors, directories, wandb)
    return Training(trial, read_config(trial), managers).run()


def read_config(trial: FleetTrial) -> FinetuneConfig:
    """The trial's settings: the study's, with its parameters over them.

    Raises:
        ObjectiveError: A setting is unknown or out of range.
    """
    try:
        return FinetuneConfig.model_validate(trial.config)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ObjectiveError(f"config.{name} = {first['input']!r}: {first['msg']}") from error


class Training:
    """One training: model, optimizer, position, and what was measured so far."""

    def __init__(self, trial: FleetTrial, config: FinetuneConfig, managers: Managers) -> None:
        self._trial = trial
        self._config = config
        self._managers = managers
        self._seed = trial.seed if config.seed is None else config.seed
        self._data = managers.data.text_classification(
            config.data, config.tokenizer, config.model, progress=trial.preparing
        )
        self._pad_id = int(self._data.tokenizer.pad_token_id)
        # here: data that have yet to be tokenised must not change what the model draws
        managers.cuda.seed(self._seed)
        self._model = self._build_model(self._data)
        self._inputs = inputs_of(self._model)
        self._optimizer = build_optimizer(self._model, config)
        self._steps_per_epoch = math.ceil(len(self._data.train) / config.batch_size)
        self._num_steps = self._steps_per_epoch * config.epochs
        self._scheduler = build_scheduler(self._optimizer, config, self._num_steps)
        self._precision = managers.amp.policy(config.precision, config.float32_matmul_precision)
        self._accumulator = managers.batches.accumulator(config.micro_batch_size)
        self._meter = managers.metrics.classification(len(self._data.classes))
        self._throughput = managers.metrics.throughput()
        self._best = managers.metrics.best(trial.spec.all_directions[0])
        self._evaluations = evaluation_steps(config, self._steps_per_epoch)
        self._watch = LossWatch(
            managers.cuda.device,
            config.max_divergences if config.on_divergence == "skip" else 0,
            is_scaled=self._precision.is_scaled,
        )
        self._history: list[dict[str, float]] = []
        #: optimizer steps that are done
        self._step = 0
        self._num_rollbacks = 0
        self._saved_at = time.monotonic()

    def run(self) -> dict[str, float]:
        """Train from the last checkpoint, or from nothing, to the end."""
        self._resume()
        try:
            while not self._is_trained():
                pass
        except DrainRequested:
            with suppress(Diverged):  # the next attempt finds that out, from the checkpoint before
                self._save()
            raise
        self._leave_word()
        self._leave_result()
        last = self._history[-1]
        return {name: last[name] for name in METRICS}

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
        for batch in self._remaining_batches():
            self._trial.progress(self._step)
            self._train_step(self._managers.tensors.to_device(batch))
            if self._is_evaluation_due():
                self._evaluate()
            if time.monotonic() - self._saved_at >= self._config.checkpoint_interval_seconds:
                self._save()

    def _train_step(self, batch: Batch) -> None:
        loss = self._accumulator.run(
            batch, self._loss_of, self._precision.backward, self._optimizer.zero_grad
        )
        norm = self._precision.step(
            self._optimizer,
            self._model.parameters(),
            self._config.max_grad_norm,
            guard=loss if self._config.on_divergence == "skip" else None,
        )
        rate = self._rate()
        self._scheduler.step()
        self._throughput.add(len(batch["labels"]))
        self._step += 1
        self._watch.note(self._step, rate, loss, norm)

    def _rate(self) -> float:
        return float(self._scheduler.get_last_lr()[0])

    def _loss_of(self, batch: Batch) -> torch.Tensor:
        return functional.cross_entropy(
            self._logits(batch), batch["labels"], label_smoothing=self._config.label_smoothing
        )

    def _logits(self, batch: Batch) -> torch.Tensor:
        with self._precision.autocast():
            output = self._model(
                **{name: tensor for name, tensor in batch.items() if name in self._inputs}
            )
        logits: torch.Tensor = output.logits.float()
        return logits

    def _is_evaluation_due(self) -> bool:
        number = len(self._history)
        return number < len(self._evaluations) and self._step == self._evaluations[number]

    def _evaluate(self) -> None:
        """Measure, report, and ask whether to go on.

        Raises:
            optuna.TrialPruned: The pruner gave the trial up.
            Diverged: There is nothing to be measured.
        """
        texts_per_second = self._throughput.take()
        train_loss = self._watch.mean()
        measured = self._measure()
        for name, measure in measured.items():
            if not math.isfinite(measure):
                what = f"{name} on the held-out texts is {measure}"
                raise Diverged(self._watch.describe(what, self._step, self._rate()))
        number = len(self._history) + 1
        value = measured[self._trial.spec.metrics[0]]
        if len(self._trial.spec.all_directions) == 1:
            self._trial.report(value, number)
        self._best.update(value)
        entry: dict[str, float] = {
            "step": self._step,
            **measured,
            "train_loss": train_loss,
            "learning_rate": self._rate(),
            "texts_per_second": round(texts_per_second, 1),
        }
        self._watch.forget_mean()
        self._history.append(entry)
        self._managers.wandb.log(entry, step=self._step)
        log.debug("evaluated", evaluation=number, **entry)
        if self._trial.should_prune():
            raise optuna.TrialPruned(f"pruned after evaluation {number}")
        self._throughput.take()

    @torch.inference_mode()
    def _measure(self) -> dict[str, float]:
        self._model.eval()
        try:
            for batch in self._evaluation_batches():
                self._trial.progress(self._step)
                moved = self._managers.tensors.to_device(batch)
                logits = self._logits(moved)
                loss = functional.cross_entropy(logits, moved["labels"])
                self._meter.update(logits, moved["labels"], loss)
            return self._meter.compute()
        finally:
            self._model.train()

    def _remaining_batches(self) -> Iterator[Batch]:
        order = RemainingBatches(
            self._managers.batches,
            self._data.train,
            self._config,
            seed=self._seed,
            start=self._step,
        )
        return self._load(self._data.train, order, self._config.loader_workers)

    def _evaluation_batches(self) -> Iterator[Batch]:
        texts = self._data.validation
        batches = self._managers.batches.evaluation_batches(
            texts.lengths, self._config.eval_batch_size
        )
        return self._load(texts, batches, 0)

    def _load(self, texts: TokenizedTexts, batches: Any, num_workers: int) -> Iterator[Batch]:
        loader = self._managers.data.loader(
            texts, batches, pad_id=self._pad_id, num_workers=num_workers
        )
        yield from loader

    def _build_model(self, data: TextClassificationData) -> Any:
        """The trial's model.

        Raises:
            UnfitStudyError: It would be wrong in every other trial, too.
        """
        try:
            return self._managers.models.sequence_classifier(
                self._config.model,
                labels=data.classes,
                tokenizer=data.tokenizer,
                max_length=self._config.data.max_length,
                dropout=self._config.dropout,
            )
        except UnfitModelError as error:
            if any(name.startswith(DECIDES_THE_MODEL) for name in self._trial.params):
                raise
            raise UnfitStudyError(str(error)) from error

    def _save(self) -> None:
        """Save a checkpoint, if there is something to save.

        Raises:
            Diverged: Nobody could go on from it.
        """
        if self._step == 0:
            return
        self._watch.look()
        if not all(bool(weight.isfinite().all()) for weight in self._model.parameters()):
            what = "a weight is no finite number"
            raise Diverged(self._watch.describe(what, self._step, self._rate()))
        self._save_as_it_is()

    def _save_as_it_is(self) -> None:
        state = {
            "step": self._step,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "precision": self._precision.state_dict(),
            "rng": self._managers.cuda.rng_state(),
            "losses": self._watch.state_dict(),
            "rollbacks": self._num_rollbacks,
            "best": self._best.value,
            "history": self._history,
        }
        self._trial.save_checkpoint(self._step, state)
        self._saved_at = time.monotonic()
        log.debug("checkpoint_saved", step=self._step)

    def _resume(self) -> None:
        state = self._trial.load_checkpoint()
        if state is not None:
            self._restore(state)
            log.debug("resumed", step=self._step, of=self._num_steps)
        elif self._config.on_divergence == "rollback":
            self._save_as_it_is()  # something to roll back to

    def _roll_back(self, error: Diverged) -> None:
        """Go on from the last checkpoint, more slowly.

        Raises:
            ObjectiveError: The study does not want that, or it was done often enough.
        """
        mode = self._config.on_divergence
        count = self._num_rollbacks + 1
        if mode != "rollback":
            raise ObjectiveError(f"{error}; {_WAY_OUT[mode]}") from error
        if count > self._config.max_divergences:
            raise ObjectiveError(
                f"{error}, after it was rolled back {self._num_rollbacks} times; {_WAY_OUT[mode]}"
            ) from error
        state = self._trial.load_checkpoint()
        if state is None:
            raise ObjectiveError(f"{error}, and there is no checkpoint to go back to") from error
        self._restore(slowed(state, 0.5 ** (count - state.get("rollbacks", 0))))
        self._num_rollbacks = count
        self._optimizer.zero_grad()
        log.warning(
            "rolled_back", reason=str(error), to_step=self._step, learning_rate=self._rate()
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self._step = state["step"]
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        self._precision.load_state_dict(state["precision"])
        self._managers.cuda.set_rng_state(state["rng"])
        # release 0.1.0 saved neither
        self._watch.load_state_dict(state.get("losses", {}))
        self._num_rollbacks = state.get("rollbacks", 0)
        self._best.value = state["best"]
        self._history = state["history"]

    def _leave_word(self) -> None:
        """Attach to the trial what it went through, should its value be looked at twice."""
        for name, count in [
            ("batches_left_out", self._watch.num_left_out),
            ("rollbacks", self._num_rollbacks),
        ]:
            if count:
                self._trial.set_user_attr(name, count)

    def _leave_result(self) -> None:
        result = TrainingResult(
            self._data.classes,
            self._history,
            self._data.tokenizer,
            self._model if self._is_model_wanted() else None,
        )
        leave_result(self._trial, result, self._managers.directories, self._managers.models)

    def _is_model_wanted(self) -> bool:
        if self._config.save_model == "best":
            value = self._history[-1][self._trial.spec.metrics[0]]
            return self._best.is_better(value, than=self._trial.best_value())
        return self._config.save_model == "all"


def inputs_of(model: Any) -> frozenset[str]:
    """What of a batch a model takes; token types only if it tells two texts apart."""
    taken = {"input_ids", "attention_mask"}
    knows_types = "token_type_ids" in inspect.signature(model.forward).parameters
    if knows_types and getattr(model.config, "type_vocab_size", 0) > 1:
        taken.add("token_type_ids")
    return frozenset(taken)
