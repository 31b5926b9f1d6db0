"""Which rows make a batch, by a number of rows or by the tokens that they may have.

Invariant: the number of batches of an epoch follows from the lengths alone, and which rows they
hold from the seed and the epoch beside them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.int64]
Batches = list[list[int]]

#: Batches whose rows are sorted by length together: long enough to save padding, short enough to
#: stay random.
_BATCHES_A_BUCKET: Final = 50

#: Lengths between two powers of two that count as different: rows of a band are at most an eighth
#: longer than one another.
_BANDS_AN_OCTAVE: Final = 8


class BatchPlan(ABC):
    """The batches of a training's epochs.

    Args:
        lengths: Tokens of each row, int64 [rows].
    """

    #: Batches an epoch.
    num_batches: int

    def __init__(self, lengths: Lengths) -> None:
        self._lengths = lengths

    def epoch(self, seed: int, number: int) -> Batches:
        """The batches of one epoch, in random order, of rows of similar length.

        Args:
            seed: The training's.
            number: Of the epoch, from 0.
        """
        generator = np.random.default_rng([seed, number])
        batches = self._cut(generator.permutation(len(self._lengths)))
        return [batches[index] for index in generator.permutation(len(batches))]

    @abstractmethod
    def _cut(self, order: npt.NDArray[np.int64]) -> Batches:
        """The batches, made of all rows in a random order."""

    @abstractmethod
    def share(self, num_rows: int) -> float:
        """By what the mean loss of a batch of so many rows counts in its step."""


class ByRows(BatchPlan):
    """Batches of equally many rows; the last one made may be smaller.

    Rows are sorted by length within buckets of 50 batches.

    Args:
        lengths: Tokens of each row, int64 [rows].
        batch_size: Rows a batch.
    """

    def __init__(self, lengths: Lengths, batch_size: int) -> None:
        super().__init__(lengths)
        self._batch_size = batch_size
        self.num_batches = -(-len(lengths) // batch_size)

    def _cut(self, order: npt.NDArray[np.int64]) -> Batches:
        batches: Batches = []
        size = self._batch_size
        for start in range(0, len(order), size * _BATCHES_A_BUCKET):
            bucket = order[start : start + size * _BATCHES_A_BUCKET]
            bucket = bucket[np.argsort(self._lengths[bucket], kind="stable")]
            batches += [
                bucket[first : first + size].tolist() for first in range(0, len(bucket), size)
            ]
        return batches

    def share(self, num_rows: int) -> float:  # noqa: ARG002
        """One."""
        return 1.0


class ByTokens(BatchPlan):
    """Batches of as many rows as have so many tokens, padding included.

    All rows are sorted by length, as far as lengths differ by an eighth or so, and are in random
    order otherwise: however they fall, the cuts are the same.

    Args:
        lengths: Tokens of each row, int64 [rows].
        batch_tokens: Tokens a batch at most; a row that is longer is a batch by itself.
    """

    def __init__(self, lengths: Lengths, batch_tokens: int) -> None:
        super().__init__(lengths)
        self._bands = -_band_of(lengths)  # the longest rows come first
        self._cuts = list(_cuts(-np.sort(self._bands, kind="stable"), batch_tokens))
        self.num_batches = len(self._cuts)

    def _cut(self, order: npt.NDArray[np.int64]) -> Batches:
        order = order[np.argsort(self._bands[order], kind="stable")]
        return [order[start:end].tolist() for start, end in self._cuts]

    def share(self, num_rows: int) -> float:
        """Its rows by those of the mean batch: in an epoch, each row counts alike."""
        return num_rows * self.num_batches / len(self._lengths)


def held_out_batches(lengths: Lengths, batch_size: int, batch_tokens: int | None = None) -> Batches:
    """All rows once, the longest first: what memory is short of shows at once.

    Args:
        lengths: Tokens of each row, int64 [rows].
        batch_size: Rows a batch.
        batch_tokens: Tokens a batch, padding included, in place of `batch_size`.
    """
    order = np.argsort(lengths, kind="stable")
    if batch_tokens is not None:
        order = order[::-1]
        cuts = _cuts(lengths[order], batch_tokens)
        return [order[start:end].tolist() for start, end in cuts]
    starts = range(0, len(order), batch_size)
    return [order[start : start + batch_size].tolist() for start in reversed(starts)]


def _band_of(lengths: Lengths) -> Lengths:
    """Each length, rounded up to one of `_BANDS_AN_OCTAVE` between two powers of two."""
    lengths = np.maximum(lengths, 1)
    octaves = np.int64(1) << np.floor(np.log2(lengths)).astype(np.int64)
    apart = np.maximum(octaves // _BANDS_AN_OCTAVE, 1)
    bands: Lengths = -(-lengths // apart) * apart
    return bands


def _cuts(descending: Lengths, batch_tokens: int) -> Iterator[tuple[int, int]]:
    """The first row of each batch and the one after its last, of rows in order of their length."""
    start = 0
    while start < len(descending):
        end = start + max(1, batch_tokens // max(1, int(descending[start])))
        yield start, min(end, len(descending))
        start = end
