"""Masked language modelling: some tokens of a text are hidden, and predicted from all others.

After Devlin et al., 2019 (arXiv:1810.04805): of each text a share of the tokens, one at least, of
which 80 % are masked, 10 % are another token, and 10 % are left as they are.

Invariant: what is hidden of a batch follows from the training's seed and the step, and of a
held-out text from the data's seed and the text, however texts fall into batches.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from workers.managers import ModelManager
from workers.managers.data import Examples
from workers.managers.head import MASKED_LM, Head
from workers.managers.tokenized import Batch
from workers.protocol.finetune import FinetuneConfig
from workers.trials.finetune.tasks.language_modelling import NOT_PREDICTED, LanguageModelling

#: Of the predicted tokens: those that are masked, and those that are that or another token.
_MASKED: Final = 0.8
_CHANGED: Final = 0.9

#: NumPy's generators take no negative seeds.
_SEEDS: Final = 2**63

Draws = npt.NDArray[np.float64]


class MaskedLm(LanguageModelling):
    """The hidden tokens of each text."""

    def __init__(self, config: FinetuneConfig) -> None:
        super().__init__(config)
        self._mask_id = 0
        #: the tokens that are hidden, and put in the place of others: not the special ones
        self._words = np.zeros(0, dtype=np.int64)

    def build_model(self, models: ModelManager, examples: Examples) -> Any:
        """One with an output for each token of the vocabulary at each place."""
        tokenizer = examples.tokenizer
        model = models.with_head(
            Head(MASKED_LM),
            self.config.model,
            tokenizer=tokenizer,
            data=self.config.data,
            dropout=self.config.dropout,
            lora=self.config.lora,
        )
        self._mask_id = tokenizer.mask_token_id
        words = {*tokenizer.get_vocab().values()} - {*tokenizer.all_special_ids}
        self._words = np.array(sorted(words), dtype=np.int64)
        return model

    def drawn(self, batch: Batch, seed: int, step: int) -> Batch:
        """Other tokens are hidden in each epoch."""
        shape = 3, *batch["input_ids"].shape
        return self._hidden(batch, np.random.default_rng([seed % _SEEDS, step]).random(shape))

    def held_out(self, batch: Batch) -> Batch:
        """The same tokens of a text are hidden each time."""
        ids = batch["input_ids"].numpy()
        draws = np.zeros((3, *ids.shape))
        for number, length in enumerate(batch["attention_mask"].numpy().sum(1).tolist()):
            text = zlib.crc32(ids[number, :length].tobytes())
            generator = np.random.default_rng([self.config.data.seed % _SEEDS, text])
            draws[:, number, :length] = generator.random((3, length))
        return self._hidden(batch, draws)

    def _hidden(self, batch: Batch, draws: Draws) -> Batch:
        """A batch with hidden tokens, which are its labels.

        Args:
            batch: `input_ids` and `attention_mask`.
            draws: From [0, 1), [3, batch, length]: which are hidden, how, and what replaces them.
        """
        ids = batch["input_ids"].numpy()
        may_be = (batch["attention_mask"].numpy() == 1) & np.isin(ids, self._words)
        count = may_be.sum(1)
        wanted = np.maximum(np.round(count * self.config.mask_fraction), 1)
        rank = np.where(may_be, draws[0], np.inf).argsort(1, kind="stable").argsort(1)
        is_hidden = may_be & (rank < wanted[:, None])
        others = self._words[(draws[2] * len(self._words)).astype(np.int64)]
        put = np.where(
            draws[1] < _MASKED, self._mask_id, np.where(draws[1] < _CHANGED, others, ids)
        )
        return {
            **batch,
            "input_ids": torch.from_numpy(np.where(is_hidden, put, ids)),
            "labels": torch.from_numpy(np.where(is_hidden, ids, NOT_PREDICTED)),
        }
