"""What language models have in common: they predict tokens of their texts.

A label is the token that is to be predicted at its place, or `NOT_PREDICTED`. Losses are means over
the tokens that are predicted, whichever rows they lie in.
"""

from __future__ import annotations

from typing import ClassVar, Final

import torch
from torch.nn import functional

from workers.managers import MetricsManager
from workers.managers.data import Examples
from workers.managers.metrics import Meter
from workers.managers.tokenized import Batch
from workers.trials.finetune.tasks.task import Task

#: The label of what nothing is learned of; as torch and `transformers` have it.
NOT_PREDICTED: Final = -100


class LanguageModelling(Task):
    """Cross entropy of the predicted tokens; its mean, and perplexity."""

    is_over_rows: ClassVar[bool] = False

    def predicted(
        self, logits: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits, [batch, length, vocabulary], and the labels that they are for."""
        return logits, labels

    def weight(self, batch: Batch) -> torch.Tensor:
        """The tokens that are predicted; 1 of none, whose loss is 0."""
        return (batch["labels"] != NOT_PREDICTED).sum().clamp(min=1)

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Cross entropy, its targets smoothed as the study says."""
        return self._cross_entropy(logits, batch, self.config.label_smoothing)

    def evaluation_loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Cross entropy."""
        return self._cross_entropy(logits, batch, 0.0)

    def measured(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG002
        """The tokens that are predicted, for their number: all is told by the loss."""
        tokens = batch["labels"][batch["labels"] != NOT_PREDICTED]
        return tokens, tokens

    def meter(self, metrics: MetricsManager, examples: Examples) -> Meter:  # noqa: ARG002
        """Perplexity."""
        return metrics.language_modelling()

    def _cross_entropy(self, logits: torch.Tensor, batch: Batch, smoothing: float) -> torch.Tensor:
        scores, wanted = self.predicted(logits, batch["labels"])
        total = functional.cross_entropy(
            scores.flatten(0, 1),
            wanted.flatten(),
            ignore_index=NOT_PREDICTED,
            reduction="sum",
            label_smoothing=smoothing,
        )
        return total / self.weight(batch)
