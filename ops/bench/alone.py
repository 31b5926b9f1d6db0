"""A training of `finetune` in this process, without a fleet: nobody prunes, drains or saves it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, get_type_hints

import torch

from workers.containers import Container
from workers.managers.tokenized import Batch
from workers.protocol.finetune import FinetuneConfig
from workers.trials.finetune.loop import Training
from workers.trials.finetune.needs import Managers
from workers.trials.finetune.tasks import make_task


class Alone:
    """What a training asks of its trial, where nothing interrupts it.

    Args:
        metric: The study's.
        seed: The trial's.
    """

    def __init__(self, metric: str, seed: int) -> None:
        self.seed = seed
        self.params: dict[str, Any] = {}
        self.user_attrs: dict[str, Any] = {}
        self.spec = SimpleNamespace(metrics=[metric], all_directions=["maximize"])

    def preparing(self, what: str, done: int = 0, total: int = 0) -> None:
        """Go on."""

    def progress(self, step: int, *, total: int | None = None, examples: int = 0) -> None:
        """Go on."""

    def defer_drain(self, *, is_deferred: bool) -> None:
        """There is no drain."""

    def report(self, value: float, step: int) -> None:
        """Nobody listens."""

    def should_prune(self) -> bool:
        """Whatever it was."""
        return False

    def load_checkpoint(self) -> None:
        """There is none."""

    def set_user_attr(self, name: str, value: Any) -> None:
        """Keep it."""
        self.user_attrs[name] = value


class LoneTraining(Training):
    """One that leaves its evaluations in `history`, and no files."""

    @property
    def history(self) -> list[dict[str, float]]:
        """What each evaluation measured."""
        return self._state.history

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What trains the model."""
        return self._state.optimizer

    @property
    def num_rows(self) -> int:
        """Rows that are trained on in all its steps."""
        return sum(map(len, self._plan.from_step(0)))

    def run_by(self, clock: Callable[[], float]) -> tuple[dict[str, float], float]:
        """Train; what `run` returns, and the seconds up to the first evaluation."""
        seconds: list[float] = []
        measure, began = self._measure, clock()

        def note() -> dict[str, float]:
            seconds.append(clock() - began)
            return measure()

        self._measure = note  # type: ignore[method-assign]
        return self.run(), seconds[0]

    def batches(self) -> list[Batch]:
        """The batches of the training, all at once; they are trained on by whoever asked."""
        with self._feed.training(self._plan.from_step(0)) as fed:
            return [each.batch for each in fed]

    def _leave_result(self, counted: Any) -> None:
        pass


def managers_of(container: Container) -> Managers:
    """The managers that a training uses."""
    named = get_type_hints(Managers).items()
    return Managers(**{name: container.get(manager) for name, manager in named})


def training(config: FinetuneConfig, managers: Managers, *, metric: str, seed: int) -> LoneTraining:
    """A training that is about to begin."""
    trial: Any = Alone(metric, seed)
    return LoneTraining(trial, config, make_task(config), managers)
