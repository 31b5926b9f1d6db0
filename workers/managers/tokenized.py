"""Tokenised texts on disk, memory-mapped by every process of a host, and how batches are padded.

Layout of a split: `<name>.ids` (int32, all texts behind one another), `<name>.offsets` (int64,
`len + 1` of them) and `<name>.labels` (int64).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

#: Texts that are tokenised at once: enough to be quick, few enough to stay small in memory.
_CHUNK = 8192

Row = tuple[npt.NDArray[np.int32], int]
Batch = dict[str, torch.Tensor]


class TokenizedTexts(Dataset[Row]):
    """One split; row `i` is its token ids (int32) and its class."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._ids = np.memmap(folder / f"{name}.ids", dtype=np.int32, mode="r")
        self._offsets = np.fromfile(folder / f"{name}.offsets", dtype=np.int64)
        self._labels = np.fromfile(folder / f"{name}.labels", dtype=np.int64)

    @classmethod
    def write(
        cls,
        folder: Path,
        name: str,
        tokenizer: Any,
        texts: Sequence[str],
        labels: Iterable[int],
        max_length: int,
    ) -> Self:
        """Tokenise `texts`, cut after `max_length` tokens, into the files of a split."""
        lengths = [0]
        with (folder / f"{name}.ids").open("wb") as file:
            for start in range(0, len(texts), _CHUNK):
                rows = tokenizer(
                    list(texts[start : start + _CHUNK]), truncation=True, max_length=max_length
                )["input_ids"]
                lengths += [len(row) for row in rows]
                np.concatenate([np.asarray(row, dtype=np.int32) for row in rows]).tofile(file)
        np.cumsum(lengths, dtype=np.int64).tofile(folder / f"{name}.offsets")
        np.fromiter(labels, dtype=np.int64).tofile(folder / f"{name}.labels")
        return cls(folder, name)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text."""
        return np.diff(self._offsets)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The class of each text."""
        return self._labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Row:
        start, end = self._offsets[index], self._offsets[index + 1]
        return self._ids[start:end], int(self._labels[index])

    def __reduce__(self) -> tuple[type[Self], tuple[Path, str]]:
        # a loader process maps the same files; the tokens do not travel
        return type(self), (self._folder, self._name)


class PaddingCollator:
    """Puts rows into one batch, each as long as the longest.

    Args:
        pad_id: The token that fills up.
        multiple: Lengths are rounded up to it; 8 suits a GPU's matrix units.
    """

    def __init__(self, pad_id: int, multiple: int = 1) -> None:
        self._pad_id = pad_id
        self._multiple = multiple

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """`input_ids` and `attention_mask`, int64 [batch, length], and `labels`, int64 [batch]."""
        longest = max(len(ids) for ids, _ in rows)
        longest = -(-longest // self._multiple) * self._multiple
        input_ids = np.full((len(rows), longest), self._pad_id, dtype=np.int64)
        mask = np.zeros((len(rows), longest), dtype=np.int64)
        for row, (ids, _) in enumerate(rows):
            input_ids[row, : len(ids)] = ids
            mask[row, : len(ids)] = 1
        return {
            "input_ids": torch.from_numpy(input_ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.tensor([label for _, label in rows]),
        }
