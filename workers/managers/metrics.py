"""MetricsManager: measures on the device, which is waited for only when numbers are read."""

from __future__ import annotations

import time
from typing import Literal

import torch
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from workers.managers.base import BaseProcessManager
from workers.managers.cuda import CUDAManager


class ClassificationMetrics:
    """Accuracy, macro F1 and mean loss over the batches of one evaluation."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._scores = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "f1": MulticlassF1Score(num_classes, average="macro"),
            }
        ).to(device)
        self._loss = MeanMetric().to(device)

    def update(self, logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor) -> None:
        """Add a batch.

        Args:
            logits: Floating [batch, classes].
            labels: int64 [batch].
            loss: The batch's mean loss, a scalar.
        """
        self._scores.update(logits.float(), labels)
        self._loss.update(loss.float(), weight=len(labels))

    def compute(self) -> dict[str, float]:
        """`accuracy` and `f1` in [0, 1], `loss` in nats; starts anew."""
        values = {name: float(value) for name, value in self._scores.compute().items()}
        values["loss"] = float(self._loss.compute())
        self._scores.reset()
        self._loss.reset()
        return values


class Throughput:
    """Texts a second since the last look."""

    def __init__(self) -> None:
        self._texts = 0
        self._since = time.perf_counter()

    def add(self, texts: int) -> None:
        """Count texts that were trained on."""
        self._texts += texts

    def take(self) -> float:
        """Texts a second since the last call."""
        now = time.perf_counter()
        rate = self._texts / max(now - self._since, 1e-9)
        self._texts, self._since = 0, now
        return rate


class BestValue:
    """The best of the values seen, by the study's direction."""

    def __init__(self, direction: Literal["maximize", "minimize"]) -> None:
        self._sign = 1.0 if direction == "maximize" else -1.0
        self.value: float | None = None

    def is_better(self, value: float, than: float | None) -> bool:
        """Whether `value` beats `than`; anything beats None."""
        return than is None or value * self._sign > than * self._sign

    def update(self, value: float) -> bool:
        """Take a value; whether it is the best so far."""
        better = self.is_better(value, self.value)
        if better:
            self.value = value
        return better


class MetricsManager(BaseProcessManager):
    """Makes the meters of a training, on the device of this process."""

    def __init__(self, cuda: CUDAManager) -> None:
        super().__init__()
        self._cuda = cuda

    def classification(self, num_classes: int) -> ClassificationMetrics:
        """Accuracy, macro F1 and mean loss over `num_classes` classes."""
        return ClassificationMetrics(num_classes, self._cuda.device)

    def throughput(self) -> Throughput:
        """Texts a second."""
        return Throughput()

    def best(self, direction: Literal["maximize", "minimize"]) -> BestValue:
        """The best value of a training."""
        return BestValue(direction)
