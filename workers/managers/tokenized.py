"""Tokenised texts on disk, memory-mapped by every process of a host, and how batches are padded.

Layout of a split: `<name>.ids` (int32, all texts behind one another), `<name>.offsets` (int64,
`len + 1` of them) and `<name>.labels` (int64).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from workers.disk.cache_entry import Entry, Progress, unwatched

#: What is tokenised at once: enough to be quick, little enough to stay small in memory and to stop
#: soon.
_PORTION_TEXTS: Final = 8192
_PORTION_CHARACTERS: Final = 2**22

Row = tuple[npt.NDArray[np.int32], int]
Batch = dict[str, torch.Tensor]


class TokenizedTexts(Dataset[Row]):
    """One split; row `i` is its token ids (int32) and its class."""

    def __init__(self, folder: Path, name: str, entry: Entry | None = None) -> None:
        self._folder = folder
        self._name = name
        self._entry = entry  # its files stay for as long as they are mapped here
        self._ids = _mapped(folder / f"{name}.ids", np.int32)
        self._offsets = _mapped(folder / f"{name}.offsets", np.int64)
        self._labels = _mapped(folder / f"{name}.labels", np.int64)

    @classmethod
    def write(
        cls,
        folder: Path,
        name: str,
        tokenizer: Any,
        texts: Sequence[str],
        labels: Iterable[int],
        max_length: int,
        progress: Progress = unwatched,
    ) -> Self:
        """Tokenise `texts`, cut after `max_length` tokens, into the files of a split.

        Args:
            folder: Where the files go.
            name: Of the split.
            tokenizer: A `transformers.PreTrainedTokenizerBase`.
            texts: What is tokenised; by the threads of `RAYON_NUM_THREADS`, if the tokenizer is
                one of those in Rust.
            labels: The class of each.
            max_length: Tokens after which a text is cut.
            progress: Told of each portion; what it raises ends the work.

        Raises:
            OSError: The disk takes no more.
        """
        lengths = [np.zeros(1, dtype=np.int64)]
        with (folder / f"{name}.ids").open("wb") as file:
            for start, portion in _portions(texts):
                progress(f"tokenised texts of {name}", start, len(texts))
                rows = _encode(tokenizer, portion, max_length)
                lengths.append(np.fromiter(map(len, rows), np.int64, len(rows)))
                ids = chain.from_iterable(rows)
                file.write(np.fromiter(ids, np.int32, int(lengths[-1].sum())).data)
        _write(folder / f"{name}.offsets", np.cumsum(np.concatenate(lengths), dtype=np.int64))
        _write(folder / f"{name}.labels", np.fromiter(labels, dtype=np.int64))
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


def _portions(texts: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """The texts, some at a time, each time with the number of the first."""
    start = characters = 0
    for index, text in enumerate(texts):
        if index > start and (
            index - start == _PORTION_TEXTS or characters + len(text) > _PORTION_CHARACTERS
        ):
            yield start, list(texts[start:index])
            start, characters = index, 0
        characters += len(text)
    if start < len(texts):
        yield start, list(texts[start:])


def _encode(tokenizer: Any, texts: list[str], max_length: int) -> list[list[int]]:
    """The ids of each text, as calling the tokenizer gives them."""
    options = {"return_attention_mask": False, "return_token_type_ids": False}
    if not tokenizer.is_fast:
        rows: list[list[int]] = tokenizer(texts, truncation=True, max_length=max_length, **options)[
            "input_ids"
        ]
        return rows
    # this sets the backend's truncation; the rest goes there without one Python object a token
    tokenizer(texts[:1], truncation=True, max_length=max_length, **options)
    return [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch_fast(texts)]


def _mapped(path: Path, dtype: Any) -> npt.NDArray[Any]:
    """A file's numbers, read by all processes from one copy in memory."""
    if path.stat().st_size == 0:  # nothing can be mapped
        return np.zeros(0, dtype=dtype)
    # as a plain array: taking a row of the other kind costs several times as much
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)


def _write(path: Path, numbers: npt.NDArray[Any]) -> None:
    # not by `tofile`, which hides why a disk takes no more
    with path.open("wb") as file:
        file.write(numbers.data)


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
