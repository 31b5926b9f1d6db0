"""Some rows of a split at once, their tokens behind one another, so that batches need no loop.

Invariant: what is taken of many rows at once is what taking each by itself gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt

#: Token ids (int32), target (of words, one of each token, int32) and, of pairs, which text each id
#: is of (int8).
Row = tuple[npt.NDArray[np.int32], Any] | tuple[npt.NDArray[np.int32], Any, npt.NDArray[np.int8]]


@dataclass(frozen=True, slots=True, eq=False)
class Rows(Sequence[Row]):
    """Rows of a split; a sequence of them, too, for collators that go row by row."""

    ids: npt.NDArray[np.int32]
    """[tokens], all rows behind one another."""
    lengths: npt.NDArray[np.int64]
    """[rows], the tokens of each."""
    labels: npt.NDArray[Any]
    """[rows, ...], what is learned of each."""
    types: npt.NDArray[np.int8] | None = None
    """[tokens], of pairs: which text each id is of."""
    positions: npt.NDArray[np.int64] | None = None
    """[tokens], of blocks: where in its text each token stands; else texts are rows."""
    tags: npt.NDArray[np.int32] | None = None
    """[tokens], of words with classes: what is learned at each token, in place of `labels`."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Rows:
        """Rows that were taken one by one, or at once already."""
        if isinstance(rows, Rows):
            return rows
        types = [row[2] for row in rows if len(row) > 2]
        tags = [row[1] for row in rows if getattr(row[1], "shape", ()) == row[0].shape]
        has_tags = all(getattr(each, "dtype", None) == np.int32 for each in tags) and bool(tags)
        return cls(
            np.concatenate([row[0] for row in rows]),
            np.fromiter((len(row[0]) for row in rows), np.int64, len(rows)),
            np.zeros(len(rows), np.uint8) if has_tags else np.array([row[1] for row in rows]),
            np.concatenate(types) if types else None,
            tags=np.concatenate(tags) if has_tags else None,
        )

    @classmethod
    def take(
        cls,
        numbers: Sequence[int] | npt.NDArray[np.int64],
        offsets: npt.NDArray[np.int64],
        ids: npt.NDArray[np.int32],
        labels: npt.NDArray[Any],
        types: npt.NDArray[np.int8] | None,
        tags: npt.NDArray[np.int32] | None = None,
    ) -> Self:
        """Rows by their numbers, of arrays that hold all of them.

        Args:
            numbers: Which rows, in this order.
            offsets: [all rows + 1], where the tokens of each begin.
            ids: [all tokens].
            labels: [all rows, ...].
            types: [all tokens], of pairs.
            tags: [all tokens], of words with classes.
        """
        chosen = np.asarray(numbers, dtype=np.int64)
        starts = offsets[chosen]
        lengths = offsets[chosen + 1] - starts
        ends = np.cumsum(lengths)
        # of each token: how far its row is moved, and its place among those that are taken
        places = np.repeat(starts - ends + lengths, lengths) + np.arange(
            ends[-1] if len(ends) else 0
        )
        return cls(
            ids[places],
            lengths,
            labels[chosen],
            None if types is None else types[places],
            tags=None if tags is None else tags[places],
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        start = int(self.lengths[:number].sum())
        end = start + int(self.lengths[number])
        label = self.labels[number] if self.tags is None else self.tags[start:end]
        row = self.ids[start:end], label
        return row if self.types is None else (*row, self.types[start:end])

    def mask(self, length: int) -> npt.NDArray[np.bool_]:
        """Where the tokens of rows of equal length stand, [rows, length]."""
        return np.arange(length, dtype=np.int32) < self.lengths[:, None].astype(np.int32)


def padded(
    tokens: npt.NDArray[Any], mask: npt.NDArray[np.bool_], fill: int
) -> npt.NDArray[np.int64]:
    """Something of each token, such as its id, as rows of equal length, int64 [rows, length].

    Args:
        tokens: [tokens], of all rows behind one another.
        mask: Where they stand, [rows, length].
        fill: What stands elsewhere.
    """
    table = np.full(mask.shape, fill, dtype=np.int64)
    table[mask] = tokens
    return table
