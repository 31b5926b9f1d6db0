"""Tokenised texts on disk, memory-mapped by every process of a host, and how batches are padded.

Layout of a split: `<name>.ids` (int32, all texts behind one another), `<name>.offsets` (int64,
`len + 1` of them), `<name>.labels` (in NumPy's format, a row for each text) and, of pairs,
`<name>.types` (int8, one for each id).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from workers.disk.cache_entry import Entry, Progress, unwatched
from workers.managers.token_rows import Row, Rows, padded

#: What is tokenised at once: enough to be quick, little enough to stay small in memory and to stop
#: soon.
_PORTION_TEXTS: Final = 8192
_PORTION_CHARACTERS: Final = 2**22

Batch = dict[str, torch.Tensor]

#: The ids of some texts and, of pairs, the type of each id.
Encoded = tuple[list[list[int]], list[list[int]]]

#: Puts rows into one batch; those of a split come as `Rows`, at once.
Collate = Callable[[Sequence[Row]], Batch]


class TokenizedTexts(Dataset[Row]):
    """One split; row `i` is its token ids, its target and, of pairs, its token types."""

    def __init__(self, folder: Path, name: str, entry: Entry | None = None) -> None:
        self.folder = folder
        self.name = name
        self.entry = entry  # its files stay for as long as they are mapped here
        self._ids = _mapped(folder / f"{name}.ids", np.int32)
        self._offsets = _mapped(folder / f"{name}.offsets", np.int64)
        self._labels: npt.NDArray[Any] = np.load(folder / f"{name}.labels", mmap_mode="r")
        self._labels = self._labels.view(np.ndarray)
        types = folder / f"{name}.types"
        self._types = _mapped(types, np.int8) if types.exists() else None

    @classmethod
    def write(
        cls,
        folder: Path,
        name: str,
        tokenizer: Any,
        texts: Sequence[str],
        labels: npt.ArrayLike,
        max_length: int | None,
        progress: Progress = unwatched,
        pairs: Sequence[str] = (),
        end_id: int | None = None,
    ) -> Self:
        """Tokenise `texts`, cut after `max_length` tokens, into the files of a split.

        Of a pair that is too long, the longer text is cut first.

        Args:
            folder: Where the files go.
            name: Of the split.
            tokenizer: A `transformers.PreTrainedTokenizerBase`.
            texts: What is tokenised; by the threads of `RAYON_NUM_THREADS`, if the tokenizer is
                one of those in Rust.
            labels: What is learned of each, [texts] or [texts, ...].
            max_length: Tokens after which a text is cut; None cuts none.
            progress: Told of each portion; what it raises ends the work.
            pairs: The second text of each, where pairs are classified.
            end_id: Put behind each text that is not cut, unless it ends so already.

        Raises:
            OSError: The disk takes no more.
        """
        has_types = bool(pairs) and any(_encode(tokenizer, ["a"], ["a"], max_length)[1][0])

        def encoded() -> Iterator[Encoded]:
            for start, portion in _portions(texts):
                progress(f"tokenised texts of {name}", start, len(texts))
                second = pairs[start : start + len(portion)]
                ids, types = _encode(tokenizer, portion, second, max_length)
                yield ids if end_id is None else _ended(ids, end_id, max_length), types

        lengths = _write_tokens(folder, name, encoded(), has_types=has_types)
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), lengths])
        _write(folder / f"{name}.offsets", np.cumsum(offsets, dtype=np.int64))
        _write_array(folder / f"{name}.labels", np.asarray(labels))
        return cls(folder, name)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each text."""
        return np.diff(self._offsets)

    @property
    def labels(self) -> npt.NDArray[Any]:
        """What is learned of each text; of a class its number, int64."""
        return self._labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Row:
        start, end = self._offsets[index], self._offsets[index + 1]
        row = self._ids[start:end], self._labels[index]
        return row if self._types is None else (*row, self._types[start:end])

    def __getitems__(self, indices: Sequence[int]) -> Rows:
        """Some rows at once; a DataLoader asks for those of a batch so."""
        return Rows.take(indices, self._offsets, self._ids, self._labels, self._types)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        # a loader process maps the same files; the tokens do not travel
        return type(self), (self.folder, self.name)


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


def _encode(
    tokenizer: Any, texts: list[str], pairs: Sequence[str], max_length: int | None
) -> Encoded:
    """The ids of each text or pair, and their types, as calling the tokenizer gives them."""
    options = {
        "truncation": "longest_first" if max_length is not None else False,
        "max_length": max_length,
        "return_attention_mask": False,
        "return_token_type_ids": bool(pairs),
    }
    second = list(pairs) or None
    if not tokenizer.is_fast:
        found = tokenizer(texts, second, **options)
        return found["input_ids"], found.get("token_type_ids", [])
    # this sets the backend's truncation; the rest goes there without one Python object a token
    tokenizer(texts[:1], second and second[:1], **options)
    inputs = texts if second is None else list(zip(texts, second, strict=True))
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(inputs)
    return [each.ids for each in encodings], [each.type_ids for each in encodings] if pairs else []


def _ended(rows: list[list[int]], end_id: int, max_length: int | None) -> list[list[int]]:
    """Rows with an end, where they were not cut."""
    limit = math.inf if max_length is None else max_length
    return [[*row, end_id] if len(row) < limit and row[-1:] != [end_id] else row for row in rows]


def _write_tokens(
    folder: Path, name: str, encoded: Iterable[Encoded], *, has_types: bool
) -> npt.NDArray[np.int64]:
    """Write the tokens of a split, portion by portion; how many each text has."""
    lengths = [np.zeros(0, dtype=np.int64)]
    kinds = [("ids", np.int32), ("types", np.int8)][: 2 if has_types else 1]
    with ExitStack() as stack:
        files = [stack.enter_context((folder / f"{name}.{kind}").open("wb")) for kind, _ in kinds]
        for portion in encoded:
            rows = portion[0]
            lengths.append(np.fromiter(map(len, rows), np.int64, len(rows)))
            num_tokens = int(lengths[-1].sum())
            for file, each, (_, dtype) in zip(files, portion, kinds, strict=False):
                file.write(np.fromiter(chain.from_iterable(each), dtype, num_tokens).data)
    return np.concatenate(lengths)


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


def _write_array(path: Path, numbers: npt.NDArray[Any]) -> None:
    """Write numbers with their type and shape."""
    with path.open("wb") as file:
        header = np.lib.format.header_data_from_array_1_0(numbers)
        np.lib.format.write_array_header_1_0(file, header)
        file.write(np.ascontiguousarray(numbers).data)


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
        """`input_ids` and `attention_mask`, int64 [batch, length], and `labels`, [batch, ...].

        Of pairs, `token_type_ids` too, int64 [batch, length].
        """
        taken = Rows.of(rows)
        mask = taken.mask(-(-int(taken.lengths.max()) // self._multiple) * self._multiple)
        batch = {
            "input_ids": torch.from_numpy(padded(taken.ids, mask, self._pad_id)),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
            "labels": torch.from_numpy(taken.labels),
        }
        if taken.types is not None:
            batch["token_type_ids"] = torch.from_numpy(padded(taken.types, mask, 0))
        return batch
