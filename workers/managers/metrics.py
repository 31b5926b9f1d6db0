"""MetricsManager: measures on the device, which is waited for only when numbers are read.

torchmetrics is imported by the first that measures: it takes half as long as torch.

Invariant: a model whose outputs are no numbers has no measure that is one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

import torch

from workers.managers.base import BaseProcessManager
from workers.managers.cuda import CUDAManager
from workers.protocol.errors import ObjectiveError

if TYPE_CHECKING:
    from torchmetrics import Metric


class Meter:
    """Scores and the mean loss over the batches of one evaluation.

    Where one of the predictions is NaN, all of them are: the class of such a row would be one that
    comparing with NaN happens to give.

    Args:
        scores: Metrics of torchmetrics, by name; each is given float32 predictions, and the labels.
            One that computes a mapping gives scores by the names in it.
        device: Where the predictions lie.
        of_loss: What follows from the mean loss, by name.
    """

    def __init__(
        self,
        scores: Mapping[str, Metric],
        device: torch.device,
        of_loss: Mapping[str, Callable[[float], float]] | None = None,
    ) -> None:
        from torchmetrics import MetricCollection

        self._of_loss = of_loss or {}

        self._scores = MetricCollection(dict(scores)).to(device)
        # torchmetrics' `MeanMetric` leaves NaN out, or, told not to, the weights
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._num_nan = torch.zeros((), dtype=torch.int64, device=device)
        self._num_rows = 0

    def update(self, predictions: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor) -> None:
        """Add a batch; of graphs nothing is kept.

        Args:
            predictions: As the metrics take them; logits, [batch, classes], of classes.
            labels: As the metrics take them; int64 [batch] of classes.
            loss: The batch's mean loss, a scalar.
        """
        predictions = predictions.detach()
        self._num_nan += predictions.isnan().sum()
        self._scores.update(predictions.float(), labels)
        self._loss_sum += loss.detach().double() * len(labels)
        self._num_rows += len(labels)

    def compute(self) -> dict[str, float]:
        """The scores by their names, and `loss`, in nats, or all NaN; starts anew.

        Scores that the labels leave undefined, such as the AUROC of one class alone, are left out.

        Raises:
            ObjectiveError: There was no row.
        """
        if not self._num_rows:
            raise ObjectiveError("metrics of no rows: call `update` before `compute`")
        values = {name: float(value) for name, value in self._scores.compute().items()}
        loss = float(self._loss_sum) / self._num_rows
        values |= {name: follows(loss) for name, follows in self._of_loss.items()}
        values["loss"] = loss
        if int(self._num_nan):
            values = dict.fromkeys(values, math.nan)
        self.reset()
        return values

    def reset(self) -> None:
        """Start anew, as after an evaluation that was broken off."""
        self._scores.reset()
        self._loss_sum.zero_()
        self._num_nan.zero_()
        self._num_rows = 0


class Throughput:
    """Texts a second since the last look.

    Args:
        clock: Seconds, monotonic; it may stand still over what is no training.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._texts = 0
        self._since = clock()

    def add(self, texts: int) -> None:
        """Count texts that were trained on."""
        self._texts += texts

    def take(self) -> float:
        """Texts a second since the last call."""
        now = self._clock()
        rate = self._texts / max(now - self._since, 1e-9)
        self._texts, self._since = 0, now
        return rate


class BestValue:
    """The best of the values seen, by the study's direction."""

    def __init__(self, direction: Literal["maximize", "minimize"]) -> None:
        self._sign = 1.0 if direction == "maximize" else -1.0
        self.value: float | None = None

    def is_better(self, value: float, than: float | None) -> bool:
        """Whether `value` beats `than`; any number beats None and NaN, and NaN beats nothing."""
        if math.isnan(value):
            return False
        return than is None or math.isnan(than) or value * self._sign > than * self._sign

    def update(self, value: float) -> bool:
        """Take a value; whether it is the best so far."""
        better = self.is_better(value, self.value)
        if better:
            self.value = value
        return better


def perplexity(loss: float) -> float:
    """Of a mean loss in nats; infinite where it has no number."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


class MetricsManager(BaseProcessManager):
    """Makes the meters of a training, on the device of this process."""

    def __init__(self, cuda: CUDAManager) -> None:
        super().__init__()
        self._cuda = cuda

    def meter(self, scores: Mapping[str, Metric]) -> Meter:
        """What measures an evaluation by metrics of torchmetrics, and the mean loss.

            metrics.meter({"mcc": MulticlassMatthewsCorrCoef(num_classes)})

        Args:
            scores: By name; each is given float32 logits, and the labels.
        """
        return Meter(scores, self._cuda.device)

    def classification(self, num_classes: int) -> Meter:
        """Of one class a text: accuracy, F1, Matthews' correlation, AUROC and mean loss.

        Given logits [batch, classes], and classes, int64 [batch].
        """
        from workers.managers.scores import scores_of_classes

        return self.meter(scores_of_classes(num_classes))

    def multi_label(self, num_classes: int) -> Meter:
        """Of any number of classes a text: F1, AUROC, how many texts are all right, and mean loss.

        Given logits, and what applies, 0 or 1, both [batch, classes].
        """
        from workers.managers.scores import scores_of_several_classes

        return self.meter(scores_of_several_classes(num_classes))

    def regression(self) -> Meter:
        """Of a number a text: correlations, errors and mean loss.

        Given predictions and numbers, both [batch].
        """
        from workers.managers.scores import scores_of_numbers

        return self.meter(scores_of_numbers())

    def language_modelling(self) -> Meter:
        """Mean loss, and perplexity: e to the mean loss over all tokens."""
        return Meter({}, self._cuda.device, {"perplexity": perplexity})

    def throughput(self, clock: Callable[[], float] = time.perf_counter) -> Throughput:
        """Texts a second, by the seconds of a clock."""
        return Throughput(clock)

    def best(self, direction: Literal["maximize", "minimize"]) -> BestValue:
        """The best value of a training."""
        return BestValue(direction)
