"""Text classification: one of several classes for each text, or pair of texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from workers.managers import MetricsManager, ModelManager
from workers.managers.data import Examples
from workers.managers.metrics import Meter
from workers.managers.tokenized import Batch
from workers.protocol.errors import UnfitModelError, nearest
from workers.protocol.finetune import FinetuneConfig
from workers.trials.finetune.tasks.task import Task


class TextClassification(Task):
    """Cross entropy over the classes; accuracy, F1, Matthews' correlation and AUROC."""

    def __init__(self, config: FinetuneConfig) -> None:
        super().__init__(config)
        self._weights: torch.Tensor | None = None

    def build_model(self, models: ModelManager, examples: Examples) -> Any:
        """One with an output for each class."""
        self._weights = weights_of(self.config.class_weights, examples)
        return models.sequence_classifier(
            self.config.model,
            labels=examples.classes,
            tokenizer=examples.tokenizer,
            max_length=self.config.data.max_length,
            dropout=self.config.dropout,
            lora=self.config.lora,
        )

    def loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Cross entropy, its targets smoothed and its classes weighed as the study says."""
        smoothing = self.config.label_smoothing
        if self._weights is None:
            return functional.cross_entropy(logits, batch["labels"], label_smoothing=smoothing)
        self._weights = self._weights.to(logits.device)
        # torch's own mean is over the weights, of which micro-batches have not equally many
        return functional.cross_entropy(
            logits, batch["labels"], self._weights, reduction="none", label_smoothing=smoothing
        ).mean()

    def evaluation_loss(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Cross entropy."""
        return functional.cross_entropy(logits, batch["labels"])

    def meter(self, metrics: MetricsManager, examples: Examples) -> Meter:
        """What people report of classes."""
        return metrics.classification(len(examples.classes))


def weights_of(asked: str | Mapping[str, float] | None, examples: Examples) -> torch.Tensor | None:
    """What a text of each class counts, float32 [classes]; None where all count alike.

    `balanced` as in scikit-learn: texts / (classes * texts of the class).

    Raises:
        UnfitModelError: A class is weighed that is none.
    """
    classes = examples.classes
    if asked is None:
        return None
    if isinstance(asked, str):
        counts = np.bincount(examples.train.labels, minlength=len(classes))
        balanced = counts.sum() / (len(classes) * np.maximum(counts, 1))
        return torch.from_numpy(balanced).float()
    for name in asked:
        if name not in classes:
            raise UnfitModelError(
                f"class_weights.{name}: the data have no such class{nearest(name, classes)}"
            )
    return torch.tensor([asked.get(name, 1.0) for name in classes])
