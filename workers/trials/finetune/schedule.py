"""The learning rate over a training, step by step."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import torch
from transformers import get_scheduler

from workers.protocol.errors import ObjectiveError
from workers.protocol.learning_rates import find_rate_problem, warmup_steps
from workers.protocol.optimizer_options import PLATEAU, OptimizerOptions


class Schedule:
    """Sets the learning rate of each step.

    Args:
        optimizer: Whose rate it is.
        config: The trial's settings.
        num_steps: Of the training, if it does not end early.
        direction: Which way the study's first metric is better.

    Raises:
        ObjectiveError: The rate would never peak, or rise where it is to fall.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        config: OptimizerOptions,
        num_steps: int,
        direction: Literal["maximize", "minimize"],
    ) -> None:
        if problem := find_rate_problem(config, num_steps):
            raise ObjectiveError(f"config: {problem}")
        self._follows_the_metric = config.schedule == PLATEAU
        self._rates: Any = _make(optimizer, config, num_steps, direction)

    @property
    def rate(self) -> float:
        """Of the next step."""
        return float(self._rates.get_last_lr()[0])

    def stepped(self) -> None:
        """A step was made."""
        if not self._follows_the_metric:
            self._rates.step()

    def measured(self, value: float) -> None:
        """An evaluation found the study's first metric to be so."""
        if self._follows_the_metric:
            self._rates.step(value)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training goes on with."""
        state: dict[str, Any] = self._rates.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._rates.load_state_dict(state)


def _make(
    optimizer: torch.optim.Optimizer, config: OptimizerOptions, num_steps: int, direction: str
) -> Any:
    warmup = warmup_steps(config, num_steps)
    if config.schedule in {"linear", "cosine", "constant"}:
        factor = partial(_factor, config.schedule, warmup, num_steps)
        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    options = dict(config.schedule_options)
    if config.schedule == PLATEAU:
        options["mode"] = direction[:3]
    return get_scheduler(config.schedule, optimizer, warmup, num_steps, options)


def _factor(schedule: str, warmup: int, num_steps: int, step: int) -> float:
    """A linear warm-up that begins above zero, then the schedule down to zero."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    left = (num_steps - step) / max(1, num_steps - warmup)
    if schedule == "cosine":
        return 0.5 * (1.0 - math.cos(math.pi * left))
    return left if schedule == "linear" else 1.0


def slowed(state: dict[str, Any], factor: float) -> dict[str, Any]:
    """The saved `optimizer` and `scheduler` of a training, with their rates times `factor`."""
    groups = [
        {**group, **{name: group[name] * factor for name in ("lr", "initial_lr") if name in group}}
        for group in state["optimizer"]["param_groups"]
    ]
    rates = {
        name: [rate * factor for rate in state["scheduler"][name]]
        for name in ("base_lrs", "_last_lr")
        if name in state["scheduler"]
    }
    return {
        **state,
        "optimizer": {**state["optimizer"], "param_groups": groups},
        "scheduler": {**state["scheduler"], **rates},
    }
