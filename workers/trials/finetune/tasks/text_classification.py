"""Text classification: one of several classes for each text, or pair of texts."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from workers.managers import MetricsManager, ModelManager
from workers.managers.data import Examples
from workers.managers.metrics import Meter
from workers.managers.tokenized import Batch
from workers.trials.finetune.tasks.task import Task


class TextClassification(Task):
    """Cross entropy over the classes; accuracy and macro F1."""

    def build_model(self, models: ModelManager, examples: Examples) -> Any:
        """One with an output for each class."""
        return models.sequence_classifier(
            self.config.model,
            labels=examples.classes,
            tokenizer=examples.tokenizer,
            max_length=self.config.data.max_length,
            dropout=self.config.dropout,
        )

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Cross entropy, its targets smoothed as the study says."""
        return functional.cross_entropy(
            logits, batch["labels"], label_smoothing=self.config.label_smoothing
        )

    def evaluation_loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Cross entropy."""
        return functional.cross_entropy(logits, batch["labels"])

    def meter(self, metrics: MetricsManager, examples: Examples) -> Meter:
        """Accuracy and macro F1."""
        return metrics.classification(len(examples.classes))
