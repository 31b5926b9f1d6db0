"""One evaluation: the model on all that is held out, measured as the task says.

Invariant: the model is in training mode afterwards, and nothing was drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from workers.managers.metrics import Meter
from workers.managers.passes import Passes
from workers.managers.tokenized import Batch
from workers.trials.finetune.feed import Feed
from workers.trials.finetune.forward import Forward
from workers.trials.finetune.tasks import Task


class Evaluation:
    """Measures the model of a training.

    Args:
        model: What is measured.
        forward: Calls it.
        task: Has the loss that is measured.
        meter: Has the metrics.
        feed: Has what is held out.
        passes: Take it through the model.
    """

    def __init__(
        self,
        model: Any,
        forward: Forward,
        task: Task,
        meter: Meter,
        feed: Feed,
        passes: Passes,
    ) -> None:
        self._model = model
        self._forward = forward
        self._task = task
        self._meter = meter
        self._feed = feed
        self._passes = passes

    @torch.inference_mode()
    def measure(self, progress: Callable[[], None]) -> dict[str, float]:
        """The task's metrics.

        Args:
            progress: Called before each batch; what it raises ends the evaluation.
        """
        self._model.eval()
        try:
            with self._feed.evaluation() as batches:
                for batch, _ in batches:
                    progress()
                    for predicted, wanted, loss in self._passes.each(batch, self._measured):
                        self._meter.update(predicted, wanted, loss)
            return self._meter.compute()
        finally:
            self._model.train()

    def _measured(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = self._forward(batch)
        loss = self._task.evaluation_loss(logits, batch)
        return (*self._task.measured(logits, batch), loss)
