"""Token classification: a class for each word of a text, such as the entities that it names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from workers.managers import MetricsManager, ModelManager
from workers.managers.data import Examples
from workers.managers.entities import EntityScores
from workers.managers.head import TOKEN_CLASSIFIER, Head
from workers.managers.metrics import Meter
from workers.managers.tags import NOT_LEARNED
from workers.managers.token_rows import Row, Rows, padded
from workers.managers.tokenized import Batch, Collate, PaddingCollator
from workers.trials.finetune.tasks.language_modelling import LanguageModelling


class TokenClassification(LanguageModelling):
    """Cross entropy of each word's first token; F1 of entities."""

    def build_model(self, models: ModelManager, examples: Examples) -> Any:
        """One with an output for each class at each token."""
        return models.with_head(
            Head(TOKEN_CLASSIFIER, examples.classes),
            self.config.model,
            tokenizer=examples.tokenizer,
            data=self.config.data,
            dropout=self.config.dropout,
            lora=self.config.lora,
        )

    def collator(self, pad_id: int, multiple: int) -> Collate:
        """Labels as long as the batch."""
        return TagCollator(pad_id, multiple)

    def measured(self, logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and classes of the words; a text's first word is marked as `EntityScores` says."""
        labels = batch["labels"]
        is_word = labels != NOT_LEARNED
        is_first = is_word & (is_word.cumsum(1) == 1)
        marked = labels + is_first * logits.shape[-1]
        return logits[is_word], marked[is_word]

    def meter(self, metrics: MetricsManager, examples: Examples) -> Meter:
        """F1, precision and recall of entities, and accuracy of words."""
        return metrics.meter({"entities": EntityScores(examples.classes)})


class TagCollator:
    """Puts texts into one batch, with the class of each word at its first token.

    Args:
        pad_id: The token that fills up.
        multiple: Lengths are rounded up to it.
    """

    def __init__(self, pad_id: int, multiple: int) -> None:
        self._pad = PaddingCollator(pad_id, multiple)

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """`input_ids`, `attention_mask` and `labels`, int64 [batch, length]."""
        taken = Rows.of(rows)
        batch = self._pad(taken)
        if taken.tags is None:
            raise TypeError("rows without a class for each token")
        mask = taken.mask(batch["input_ids"].shape[1])
        return {**batch, "labels": torch.from_numpy(padded(taken.tags, mask, NOT_LEARNED))}
