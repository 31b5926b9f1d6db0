"""Tokenised texts on disk, memory-mapped by every process of a host, and how batches are padded.

Layout of a split: `<name>.ids` (int32, all texts behind one another), `<name>.offsets` (int64,
`len + 1` of them), `<name>.labels` (in NumPy's format, a row for each text) and, of pairs,
`<name>.types` (int8, one for each id) or, of words with classes, `<name>.tags` (int32, one for each
id).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from workers.disk.cache_entry import Entry, Progress, unwatched
from workers.managers.tags import WordTags
from workers.managers.token_rows import Row, Rows, padded

#: What is tokenised at once: enough to be quick, little enough to stay small in memory and to stop
#: soon.
_PORTION_TEXTS: Final = 8192
_PORTION_CHARACTERS: Final = 2**22

#: Of a text with more characters, no more are tokenised than its first tokens take: a tokenizer
#: takes a hundred bytes for each, and some seconds for a million.
_LONG_TEXT: Final = 2**16
_CHARACTERS_A_TOKEN: Final = 32

Batch = dict[str, torch.Tensor]


class Encoded(NamedTuple):
    """The tokens of some texts."""

    ids: list[list[int]]
    types: list[list[int]]
    """Of pairs: which text each id is of."""
    spans: npt.NDArray[np.int64]
    """Where that is asked for: where in its text each token begins and ends, [tokens, 2]."""


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
        types, tags = folder / f"{name}.types", folder / f"{name}.tags"
        self._types = _mapped(types, np.int8) if types.exists() else None
        self._tags = _mapped(tags, np.int32) if tags.exists() else None

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
        tags: WordTags | None = None,
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
            tags: The classes of the texts' words, where these are learned.

        Raises:
            OSError: The disk takes no more.
        """
        has_types = bool(pairs) and any(_encode(tokenizer, ["a"], ["a"], max_length).types[0])

        def encoded() -> Iterator[list[npt.NDArray[Any]]]:
            for start, portion in _portions(texts):
                progress(f"tokenised texts of {name}", start, len(texts))
                both = portion, pairs[start : start + len(portion)]
                if max_length is not None and tags is None:
                    both = _beginnings(tokenizer, both, max_length)
                ids, types, spans = _encode(
                    tokenizer, *both, max_length, with_spans=tags is not None
                )
                if end_id is not None:
                    ids = _ended(ids, end_id, max_length)
                lengths = np.fromiter(map(len, ids), np.int64, len(ids))
                found = [lengths, _flat(ids, lengths, np.int32)]
                if has_types:
                    found.append(_flat(types, lengths, np.int8))
                if tags is not None:
                    found.append(tags.of_tokens(start, portion, lengths, spans))
                yield found

        kinds = ["ids", *(["types"] if has_types else []), *([] if tags is None else ["tags"])]
        lengths = _write_tokens([folder / f"{name}.{kind}" for kind in kinds], encoded())
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
        """What is learned of each text; of a class its number, int64; of words, of each token."""
        return self._labels if self._tags is None else self._tags

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> Row:
        start, end = self._offsets[index], self._offsets[index + 1]
        label = self._labels[index] if self._tags is None else self._tags[start:end]
        row = self._ids[start:end], label
        return row if self._types is None else (*row, self._types[start:end])

    def __getitems__(self, indices: Sequence[int]) -> Rows:
        """Some rows at once; a DataLoader asks for those of a batch so."""
        return Rows.take(indices, self._offsets, self._ids, self._labels, self._types, self._tags)

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


def _beginnings(
    tokenizer: Any, both: Iterable[Sequence[str]], max_length: int
) -> tuple[list[str], list[str]]:
    first, second = ([_beginning(tokenizer, text, max_length) for text in each] for each in both)
    return first, second


def _beginning(tokenizer: Any, text: str, max_length: int) -> str:
    """As much of a text as decides its first tokens: enough for twice as many."""
    if getattr(tokenizer, "truncation_side", "right") != "right":
        return text
    size = max(_LONG_TEXT, _CHARACTERS_A_TOKEN * max_length)
    while size < len(text):
        blank = text.rfind(" ", size // 2, size)
        beginning = text[: size if blank < 0 else blank]
        if len(tokenizer(beginning, truncation=False, verbose=False)["input_ids"]) > 2 * max_length:
            return beginning
        size *= 4
    return text


def _encode(
    tokenizer: Any,
    texts: list[str],
    pairs: Sequence[str],
    max_length: int | None,
    *,
    with_spans: bool = False,
) -> Encoded:
    """The tokens of each text or pair, as calling the tokenizer gives them."""
    options = {
        "truncation": "longest_first" if max_length is not None else False,
        "max_length": max_length,
        "return_attention_mask": False,
        "return_token_type_ids": bool(pairs),
    }
    second = list(pairs) or None
    nowhere = np.zeros((0, 2), dtype=np.int64)
    if not tokenizer.is_fast:
        found = tokenizer(texts, second, **options)
        return Encoded(found["input_ids"], found.get("token_type_ids", []), nowhere)
    # this sets the backend's truncation; the rest goes there without one Python object a token
    tokenizer(texts[:1], second and second[:1], **options)
    inputs = texts if second is None else list(zip(texts, second, strict=True))
    backend = tokenizer.backend_tokenizer
    encodings = (backend.encode_batch if with_spans else backend.encode_batch_fast)(inputs)
    ids = [each.ids for each in encodings]
    types = [each.type_ids for each in encodings] if pairs else []
    return Encoded(ids, types, _spans(encodings) if with_spans else nowhere)


def _spans(encodings: Iterable[Any]) -> npt.NDArray[np.int64]:
    """Where in its text each token begins and ends, [tokens, 2]."""
    spans = chain.from_iterable(each.offsets for each in encodings)  # a list only while it is read
    return np.fromiter(chain.from_iterable(spans), np.int64).reshape(-1, 2)


def _ended(rows: list[list[int]], end_id: int, max_length: int | None) -> list[list[int]]:
    """Rows with an end, where they were not cut."""
    limit = math.inf if max_length is None else max_length
    return [[*row, end_id] if len(row) < limit and row[-1:] != [end_id] else row for row in rows]


def _flat(
    rows: Iterable[list[int]], lengths: npt.NDArray[np.int64], dtype: Any
) -> npt.NDArray[Any]:
    """Rows behind one another."""
    return np.fromiter(chain.from_iterable(rows), dtype, int(lengths.sum()))


def _write_tokens(
    paths: Sequence[Path], portions: Iterable[Sequence[npt.NDArray[Any]]]
) -> npt.NDArray[np.int64]:
    """Write the tokens of a split, portion by portion; how many each text has.

    Args:
        paths: The files.
        portions: Each the lengths of some texts, and what is written into each file.
    """
    lengths = [np.zeros(0, dtype=np.int64)]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for own, *flat in portions:
            lengths.append(own)
            for file, each in zip(files, flat, strict=True):
                file.write(each.data)
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
