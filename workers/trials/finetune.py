"""The built-in objective `finetune`: trains a text classifier as the study's `config` says.

Invariant: at every call of `trial.progress` the training's state is whole, so that a checkpoint
taken there goes on, on the CPU to the bit, as if nothing had happened.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
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
from workers.protocol.errors import DrainRequested, ObjectiveError
from workers.protocol.finetune import METRICS, FinetuneConfig
from workers.trials.handle import FleetTrial

log = get_logger(__name__)


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
        self._optimizer = build_optimizer(self._model, config)
        self._steps_per_epoch = math.ceil(len(self._data.train) / config.batch_size)
        self._num_steps = self._steps_per_epoch * config.epochs
        self._scheduler = build_scheduler(self._optimizer, config, self._num_steps)
        self._precision = managers.amp.policy(config.precision)
        self._accumulator = managers.batches.accumulator(config.micro_batch_size)
        self._meter = managers.metrics.classification(len(self._data.classes))
        self._throughput = managers.metrics.throughput()
        self._best = managers.metrics.best(trial.spec.all_directions[0])
        self._evaluations = evaluation_steps(config, self._steps_per_epoch)
        self._loss = torch.zeros((), device=managers.cuda.device)
        self._history: list[dict[str, float]] = []
        #: optimizer steps that are done
        self._step = 0
        self._saved_at = time.monotonic()

    def run(self) -> dict[str, float]:
        """Train from the last checkpoint, or from nothing, to the end."""
        self._restore()
        try:
            self._train()
        except DrainRequested:
            self._save()
            raise
        self._leave_result()
        last = self._history[-1]
        return {name: last[name] for name in METRICS}

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
        self._loss += self._accumulator.run(
            batch, self._loss_of, self._precision.backward, self._optimizer.zero_grad
        )
        self._precision.step(self._optimizer, self._model.parameters(), self._config.max_grad_norm)
        self._scheduler.step()
        self._throughput.add(len(batch["labels"]))
        self._step += 1

    def _loss_of(self, batch: Batch) -> torch.Tensor:
        return functional.cross_entropy(
            self._logits(batch), batch["labels"], label_smoothing=self._config.label_smoothing
        )

    def _logits(self, batch: Batch) -> torch.Tensor:
        with self._precision.autocast():
            output = self._model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
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
        """
        rate = self._throughput.take()
        measured = self._measure()
        number = len(self._history) + 1
        value = measured[self._trial.spec.metrics[0]]
        if len(self._trial.spec.all_directions) == 1:
            self._trial.report(value, number)
        self._best.update(value)
        since_last = self._step - (self._evaluations[number - 2] if number > 1 else 0)
        entry: dict[str, float] = {
            "step": self._step,
            **measured,
            "train_loss": float(self._loss) / since_last,
            "learning_rate": float(self._scheduler.get_last_lr()[0]),
            "texts_per_second": round(rate, 1),
        }
        self._loss.zero_()
        self._history.append(entry)
        self._managers.wandb.log(entry, step=self._step)
        log.info("evaluated", evaluation=number, **entry)
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
        return self._managers.models.sequence_classifier(
            self._config.model,
            num_labels=len(data.classes),
            vocab_size=len(data.tokenizer),
            pad_token_id=self._pad_id,
            max_length=self._config.data.max_length,
            dropout=self._config.dropout,
        )

    def _save(self) -> None:
        if self._step == 0:
            return
        state = {
            "step": self._step,
            "model": self._model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "precision": self._precision.state_dict(),
            "rng": self._managers.cuda.rng_state(),
            "loss": self._loss,
            "best": self._best.value,
            "history": self._history,
        }
        self._trial.save_checkpoint(self._step, state)
        self._saved_at = time.monotonic()
        log.info("checkpoint_saved", step=self._step)

    def _restore(self) -> None:
        state = self._trial.load_checkpoint()
        if state is None:
            return
        self._step = state["step"]
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        self._precision.load_state_dict(state["precision"])
        self._managers.cuda.set_rng_state(state["rng"])
        self._loss.copy_(state["loss"])
        self._best.value = state["best"]
        self._history = state["history"]
        log.info("resumed", step=self._step, of=self._num_steps)

    def _leave_result(self) -> None:
        """Write what people look for; on a full disk, the trial's values count without it."""
        try:
            self._write_result(self._trial.result_directory)
        except (OSError, SafetensorError) as error:
            log.warning("result_not_written", error=str(error), hint="make room on the disk")
            self._trial.set_user_attr("result_error", str(error))

    def _write_result(self, folder: Path) -> None:
        content = {
            "study": self._trial.study_name,
            "trial": self._trial.number,
            "params": self._trial.params,
            "classes": self._data.classes,
            "evaluations": self._history,
        }
        self._managers.directories.atomic_write(
            folder / "metrics.json", json.dumps(content, indent=2, ensure_ascii=False)
        )
        if self._is_model_wanted():
            self._model.config.id2label = dict(enumerate(self._data.classes))
            self._model.config.label2id = {
                label: number for number, label in enumerate(self._data.classes)
            }
            self._managers.models.save(self._model, folder / "model")
            self._data.tokenizer.save_pretrained(str(folder / "model"))

    def _is_model_wanted(self) -> bool:
        if self._config.save_model == "best":
            value = self._history[-1][self._trial.spec.metrics[0]]
            return self._best.is_better(value, than=self._trial.best_value())
        return self._config.save_model == "all"


class RemainingBatches:
    """The batches of all epochs from a step on, each epoch planned when it begins."""

    def __init__(
        self,
        batches: BatchManager,
        texts: TokenizedTexts,
        config: FinetuneConfig,
        *,
        seed: int,
        start: int,
    ) -> None:
        self._batches = batches
        self._lengths = texts.lengths
        self._config = config
        self._seed = seed
        self._start = start
        self._steps_per_epoch = math.ceil(len(texts) / config.batch_size)

    def __len__(self) -> int:
        return self._steps_per_epoch * self._config.epochs - self._start

    def __iter__(self) -> Iterator[list[int]]:
        first, offset = divmod(self._start, self._steps_per_epoch)
        for epoch in range(first, self._config.epochs):
            planned = self._batches.training_batches(
                self._lengths, self._config.batch_size, seed=self._seed, epoch=epoch
            )
            yield from planned[offset if epoch == first else 0 :]


def evaluation_steps(config: FinetuneConfig, steps_per_epoch: int) -> list[int]:
    """After which steps to evaluate, ascending; the last step is one of them."""
    parts = min(config.evaluations_per_epoch, steps_per_epoch)
    return [
        epoch * steps_per_epoch + steps_per_epoch * part // parts
        for epoch in range(config.epochs)
        for part in range(1, parts + 1)
    ]


def build_optimizer(model: torch.nn.Module, config: FinetuneConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2019, arXiv:1711.05101); biases and norms do not decay."""
    matrices = [weight for weight in model.parameters() if weight.requires_grad and weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.requires_grad and weight.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def build_scheduler(
    optimizer: torch.optim.Optimizer, config: FinetuneConfig, num_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """A linear warm-up, then the schedule down to zero."""
    warmup = round(num_steps * config.warmup_fraction)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        left = (num_steps - step) / max(1, num_steps - warmup)
        if config.schedule == "cosine":
            return 0.5 * (1.0 - math.cos(math.pi * left))
        return left if config.schedule == "linear" else 1.0

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
