"""What is trained: the model and all that changes with it, saved and restored as one.

Invariant: a state that was restored trains on as the one that was saved, on the CPU to the bit.
What changes from step to step belongs in it, and in `state_dict` and `load_state_dict`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from workers.managers import CUDAManager, adapters
from workers.managers.amp import PrecisionPolicy
from workers.managers.metrics import BestValue
from workers.managers.passes import Accumulator, Passes
from workers.trials.divergence import Diverged, LossWatch
from workers.trials.finetune.schedule import Schedule
from workers.trials.finite import first_not_finite


@dataclass(slots=True)
class FinetuneState:
    """One training between two of its steps."""

    model: Any
    """A `transformers.PreTrainedModel`."""
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    precision: PrecisionPolicy
    losses: LossWatch
    best: BestValue
    """The best value that this trial reported."""
    cuda: CUDAManager
    """Has the generators from which a training draws."""
    accumulator: Accumulator
    """Makes gradients, and knows how many texts go through at once."""
    evaluation_passes: Passes
    """Knows that of evaluations."""
    step: int = 0
    """Optimizer steps that are done."""
    num_rollbacks: int = 0
    """How often the training went on from before, because it diverged."""
    history: list[dict[str, float]] = field(default_factory=list)
    """What each evaluation measured."""
    best_weights: dict[str, Any] | None = None
    """The model's state at its best evaluation, on the CPU, where that is to be kept."""

    def keep_weights(self) -> None:
        """Take those of now for the best; waits for the device."""
        self.best_weights = None  # first: a host may have no room for three
        self.best_weights = {
            name: value.detach().to("cpu", copy=True) if torch.is_tensor(value) else value
            for name, value in adapters.trained_state(self.model).items()
        }

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return self.schedule.rate

    def diverged(self, what: str) -> Diverged:
        """What to raise where the training is none any more; says step, rate and loss, too."""
        return Diverged(self.losses.describe(what, self.step, self.rate))

    def has_finite_weights(self) -> bool:
        """Whether each weight is a number; waits for the device."""
        return first_not_finite(self.model.named_parameters()) is None

    def state_dict(self) -> dict[str, Any]:
        """All of it, by references: to be written before the next step."""
        return {
            "step": self.step,
            "model": adapters.trained_state(self.model),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.schedule.state_dict(),
            "precision": self.precision.state_dict(),
            "rng": self.cuda.rng_state(),
            "losses": self.losses.state_dict(),
            "rollbacks": self.num_rollbacks,
            "best": self.best.value,
            "history": self.history,
            "fitting": [self.accumulator.state_dict(), self.evaluation_passes.state_dict()],
            **({} if self.best_weights is None else {"best_weights": self.best_weights}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Be as `state_dict` told."""
        self.step = state["step"]
        adapters.load_trained_state(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["scheduler"])
        self.precision.load_state_dict(state["precision"])
        self.cuda.set_rng_state(state["rng"])
        # release 0.1.0 saved none of these
        self.losses.load_state_dict(state.get("losses", {}))
        self.num_rollbacks = state.get("rollbacks", 0)
        passes = (self.accumulator, self.evaluation_passes)
        for each, fitting in zip(passes, state.get("fitting", []), strict=False):
            each.load_state_dict(fitting)
        self.best.value = state["best"]
        self.history = state["history"]
        self.best_weights = state.get("best_weights")
