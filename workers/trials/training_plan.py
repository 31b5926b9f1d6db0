"""What a training goes through: its batches, when it is evaluated, its optimizer and its rates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from workers.managers import BatchManager
from workers.managers.tokenized import TokenizedTexts
from workers.protocol.finetune import FinetuneConfig


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


def slowed(state: dict[str, Any], factor: float) -> dict[str, Any]:
    """The saved `optimizer` and `scheduler` of a training, with their rates times `factor`."""
    groups = [
        {**group, **{name: group[name] * factor for name in ("lr", "initial_lr")}}
        for group in state["optimizer"]["param_groups"]
    ]
    rates = {
        name: [rate * factor for rate in state["scheduler"][name]]
        for name in ("base_lrs", "_last_lr")
    }
    return {
        **state,
        "optimizer": {**state["optimizer"], "param_groups": groups},
        "scheduler": {**state["scheduler"], **rates},
    }
