"""Multi-label classification: any number of classes for each text, or pair of texts."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from workers.managers import MetricsManager, ModelManager
from workers.managers.data import Examples
from workers.managers.metrics import Meter
from workers.managers.tokenized import Batch
from workers.trials.finetune.tasks.task import Task


class MultiLabel(Task):
    """Binary cross entropy of each class, which applies at a probability over one half."""

    def build_model(self, models: ModelManager, examples: Examples) -> Any:
        """One with an output for each class."""
        return models.sequence_classifier(
            self.config.model,
            labels=examples.classes,
            problem_type="multi_label_classification",
            tokenizer=examples.tokenizer,
            max_length=self.config.data.max_length,
            dropout=self.config.dropout,
            lora=self.config.lora,
        )

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Binary cross entropy, its targets smoothed as the study says."""
        smoothing = self.config.label_smoothing
        wanted = batch["labels"].float() * (1.0 - smoothing) + smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits, wanted)

    def evaluation_loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Binary cross entropy."""
        return functional.binary_cross_entropy_with_logits(logits, batch["labels"].float())

    def meter(self, metrics: MetricsManager, examples: Examples) -> Meter:
        """F1, AUROC, and how many texts are all right."""
        return metrics.multi_label(len(examples.classes))
