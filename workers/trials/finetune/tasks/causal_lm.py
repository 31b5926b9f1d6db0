"""Causal language modelling: each token of a text is predicted from those before it.

Invariant: nothing is predicted from another text, unless the study says so; padding never is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from workers.disk.cache_entry import Progress
from workers.managers import DataManager, ModelManager
from workers.managers.data import Examples
from workers.managers.head import CAUSAL_LM, Head
from workers.managers.packed import PackedTexts
from workers.managers.token_rows import Row, Rows
from workers.managers.tokenized import Batch, Collate, PaddingCollator
from workers.protocol.errors import InvalidInputError
from workers.trials.finetune.tasks.language_modelling import NOT_PREDICTED, LanguageModelling


class CausalLm(LanguageModelling):
    """The next token, of each text by itself or of texts in blocks."""

    def examples(self, data: DataManager, progress: Progress) -> Examples:
        """The texts, or the blocks that they are put into.

        Raises:
            InvalidInputError: The study's data cannot be used.
        """
        found = super().examples(data, progress)
        config = self.config.data
        for side in (found.train, found.validation):
            if side.lengths.max(initial=0) < 2:
                raise InvalidInputError(
                    f"data.source = {config.source!r}: no text of the {side.name} side has two"
                    " tokens, and a token is predicted from the ones before it; give longer texts"
                )
        if config.block_size is None:
            return found
        train, validation = (
            PackedTexts(side, config.block_size, is_joined=config.across_texts)
            for side in (found.train, found.validation)
        )
        return dataclasses.replace(found, train=train, validation=validation)

    def build_model(self, models: ModelManager, examples: Examples) -> Any:
        """One that sees no token before it has predicted it."""
        return models.with_head(
            Head(CAUSAL_LM),
            self.config.model,
            tokenizer=examples.tokenizer,
            data=self.config.data,
            dropout=self.config.dropout,
            lora=self.config.lora,
        )

    def collator(self, pad_id: int, multiple: int) -> Collate:
        """Labels that are the tokens themselves, but for those that begin a text."""
        config = self.config.data
        is_apart = config.block_size is not None and not config.across_texts
        return CausalCollator(pad_id, multiple, is_apart=is_apart)

    def predicted(
        self, logits: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each output is for the token behind it."""
        return logits[:, :-1], labels[:, 1:]


class CausalCollator:
    """Puts texts or blocks into one batch, with the tokens that are predicted as `labels`.

    A token that begins a text, or a block's piece of one, is predicted from nothing: it is no
    label. `position_ids` are given where the texts of a row are to be kept apart; padding then is
    a text of its own.

    Args:
        pad_id: The token that fills up.
        multiple: Lengths are rounded up to it.
        is_apart: Whether rows hold texts that are kept apart.
    """

    def __init__(self, pad_id: int, multiple: int, *, is_apart: bool) -> None:
        self._pad = PaddingCollator(pad_id, multiple)
        self._is_apart = is_apart

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """`input_ids`, `attention_mask` and `labels`, int64 [batch, length]."""
        taken = Rows.of(rows)
        batch = self._pad(taken)
        ids, mask = batch["input_ids"].numpy(), batch["attention_mask"].numpy() == 1
        places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        positions = places - taken.lengths[:, None]  # of the padding
        positions[mask] = places[mask] if taken.positions is None else taken.positions
        labels = np.where(mask & (positions > 0), ids, NOT_PREDICTED)
        apart = {"position_ids": torch.from_numpy(positions)} if self._is_apart else {}
        return {**batch, "labels": torch.from_numpy(labels), **apart}
