"""Regression: a number for each text, or pair of texts, such as how alike two are."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from workers.managers import MetricsManager, ModelManager
from workers.managers.data import Examples
from workers.managers.metrics import Meter
from workers.managers.tokenized import Batch
from workers.trials.finetune.tasks.task import Task


class Regression(Task):
    """Squared error of one output; correlations and errors."""

    def build_model(self, models: ModelManager, examples: Examples) -> Any:
        """One with one output; a pretrained one's is kept."""
        return models.sequence_classifier(
            self.config.model,
            num_labels=1,
            problem_type="regression",
            tokenizer=examples.tokenizer,
            max_length=self.config.data.max_length,
            dropout=self.config.dropout,
            lora=self.config.lora,
        )

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The mean squared error."""
        return functional.mse_loss(logits.squeeze(-1), batch["labels"])

    def evaluation_loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """The same."""
        return self.loss(logits, batch)

    def measured(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The one output of each row, and its number."""
        return logits.squeeze(-1), batch["labels"]

    def meter(self, metrics: MetricsManager, examples: Examples) -> Meter:  # noqa: ARG002
        """Correlations and errors."""
        return metrics.regression()
