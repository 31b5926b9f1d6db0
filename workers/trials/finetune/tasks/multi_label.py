"""Multi-label classification: any number of classes for each text, or pair of texts."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torchmetrics.classification import MultilabelAUROC, MultilabelF1Score
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities import dim_zero_cat

from workers.managers import MetricsManager, ModelManager
from workers.managers.data import Examples
from workers.managers.metrics import Meter
from workers.managers.tokenized import Batch
from workers.trials.finetune.tasks.task import Task


class MultiLabel(Task):
    """Binary cross entropy of each class; F1 at a probability of one half, and AUROC."""

    def build_model(self, models: ModelManager, examples: Examples) -> Any:
        """One with an output for each class."""
        return models.sequence_classifier(
            self.config.model,
            labels=examples.classes,
            problem_type="multi_label_classification",
            tokenizer=examples.tokenizer,
            max_length=self.config.data.max_length,
            dropout=self.config.dropout,
        )

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Binary cross entropy, its targets smoothed as the study says."""
        smoothing = self.config.label_smoothing
        wanted = batch["labels"].float() * (1.0 - smoothing) + smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits, wanted)

    def evaluation_loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Binary cross entropy."""
        return functional.binary_cross_entropy_with_logits(logits, batch["labels"].float())

    def measured(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The probability of each class, and whether it applies."""
        # not the logits: torchmetrics takes a batch of which all lie in [0, 1] for probabilities
        return logits.sigmoid(), batch["labels"].int()

    def meter(self, metrics: MetricsManager, examples: Examples) -> Meter:
        """F1 over all decisions, the mean of each class's F1, and that of its AUROC."""
        count = len(examples.classes)
        return metrics.meter(
            {
                "f1_micro": MultilabelF1Score(count, average="micro"),
                "f1_macro": MultilabelF1Score(count, average="macro"),
                "auroc": MeasurableAUROC(count),
            }
        )


class MeasurableAUROC(MultilabelAUROC):
    """The mean AUROC of the classes that have one: held-out rows with them, and without.

    0.5, which is chance, where no class has.
    """

    def compute(self) -> torch.Tensor:
        """The mean, a scalar."""
        scores, wanted = dim_zero_cat(self.preds), dim_zero_cat(self.target)
        has_one = wanted.bool().any(0) & ~wanted.bool().all(0)
        if not has_one.any():
            return torch.tensor(0.5, device=scores.device)
        scores, wanted = scores[:, has_one], wanted[:, has_one]
        each = [binary_auroc(*column) for column in zip(scores.T, wanted.T, strict=True)]
        return torch.stack(each).mean()
