"""Texts behind one another, cut into blocks of equally many tokens: nothing is padded.

Blocks are a view of the tokens as they lie on disk; one data set serves every size.

Invariant: every token lies in one block, and a position says where in its text's piece it stands,
so that whoever reads a block can keep its texts apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.managers.token_rows import Row, Rows
from workers.managers.tokenized import TokenizedTexts


class PackedTexts(TokenizedTexts):
    """One split; row `i` is the ids of its block and, int64, the position of each.

    A piece of a text begins at position 0, be it because the text does or because the block does.

    Args:
        texts: The split, text by text.
        block_size: Tokens a block; the last one may be shorter.
        is_joined: Whether the texts of a block are one text: positions run on.
    """

    def __init__(self, texts: TokenizedTexts, block_size: int, *, is_joined: bool = False) -> None:
        super().__init__(texts.folder, texts.name, texts.entry)
        self._block_size = block_size
        self._is_joined = is_joined

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each block."""
        starts = np.arange(0, len(self._ids), self._block_size, dtype=np.int64)
        return np.minimum(len(self._ids) - starts, self._block_size)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Row:
        rows = self.__getitems__([range(len(self))[index]])  # who iterates needs an IndexError
        return rows.ids, rows.positions

    def __getitems__(self, indices: Sequence[int]) -> Rows:
        """Some blocks at once, with the position of each token."""
        starts = np.asarray(indices, dtype=np.int64) * self._block_size
        lengths = np.minimum(len(self._ids) - starts, self._block_size)
        places = (starts[:, None] + np.arange(self._block_size)).ravel()
        places = places[places < len(self._ids)]
        positions = places % self._block_size
        if not self._is_joined:
            text = np.searchsorted(self._offsets, places, side="right") - 1
            positions = np.minimum(positions, places - self._offsets[text])
        nothing = np.zeros(len(lengths), dtype=np.uint8)
        return Rows(self._ids[places], lengths, nothing, positions=positions)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        split = TokenizedTexts(self.folder, self.name)  # without what keeps its files in the cache
        return partial(type(self), is_joined=self._is_joined), (split, self._block_size)
