"""The learning rate over a training, step by step."""

from __future__ import annotations

import math
from typing import Any

import torch

from workers.protocol.finetune import FinetuneConfig


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
