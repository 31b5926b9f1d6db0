"""What went by of a data set: of each row a hash of its text, its class and its line; no texts.

From it follow the split, and what people should know of their data before it is trained on.

Invariant: equal texts lie on one side, and every class that is held out is trained, too.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from workers.protocol.finetune import DataConfig
from workers.protocol.tasks import OUTSIDE
from workers.texts.labels import Label, kind_of, names_in
from workers.texts.rows import Row

#: How many lines, and how many classes, a finding names.
_NAMED: Final = 5

#: What files have between two classes of a row.
_SEPARATORS: Final = (";", "|", ",", "/", "+")

#: Spreads class numbers over 64 bits (Knuth's multiplicative hashing).
_ODD: Final = 0x9E3779B97F4A7C15

#: What is wrong with a text that has more than one label.
_SEVERAL: Final = {
    "class": "classes",
    "number": "numbers",
    "classes": "sets of classes",
    "tags": "sequences of classes",
}

Mask = npt.NDArray[np.bool_]


class Ledger:
    """The rows of one source, 16 bytes each, and 24 of pairs."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self._kind = kind_of(config)
        #: of each row, what falls on one side of the split with its like
        self._texts = array("Q")
        #: of each row, what a model reads: the text or, where pairs are read, both
        self._inputs = self._texts if config.text_pair is None else array("Q")
        self._classes = array("I")
        self._lines = array("I")
        self._unit = "row"
        #: label -> its number
        self._numbers: dict[Label, int] = {}
        #: the classes that labels name, in their order
        self.classes: dict[str, None] = {}

    def add(self, row: Row) -> None:
        """Note a row."""
        self._texts.append(_hash(f"{self._config.seed}\0{row.text}"))
        if self._inputs is not self._texts:
            self._inputs.append(_hash(f"{row.text}\0{row.pair}"))
        self._classes.append(self._number(row.label))
        self._unit, _, line = row.place.partition(" ")
        self._lines.append(int(line))

    def _number(self, label: Label) -> int:
        number = self._numbers.get(label)
        if number is None:
            number = self._numbers[label] = len(self._numbers)
            self.classes.update(dict.fromkeys(names_in(label)))
        return number

    @property
    def num_labels(self) -> int:
        """Different labels: of numbers, different numbers."""
        return len(self._numbers)

    def label_counts(self, rows: Mask | None = None) -> dict[Label, int]:
        """The labels, each with how many rows have it.

        Args:
            rows: Of these alone.
        """
        classes = self._array(self._classes, np.int64)
        counts = np.bincount(classes if rows is None else classes[rows], minlength=self.num_labels)
        return {
            label: count
            for label, count in zip(self._numbers, counts.tolist(), strict=True)
            if count
        }

    def __len__(self) -> int:
        return len(self._texts)

    def held_out(self) -> Mask:
        """Which rows are held out: of each class, as many of its texts as the fraction says.

        One text at least, where a class has two; which ones, the hash of a text decides: the same
        in every trial, on every host, wherever in the file it is. A text with several classes
        counts as of the rarest of them, and those with numbers as of one class.
        """
        keys, first, group_of_row = np.unique(
            self._array(self._texts, np.uint64), return_index=True, return_inverse=True
        )
        classes = self._array(self._classes, np.int64)
        class_of_group = self._strata(classes)[classes[first]]
        sizes = np.bincount(class_of_group, minlength=self.num_labels)
        wanted = np.maximum(np.round(sizes * self._config.validation_fraction), 1).astype(np.int64)
        wanted = np.minimum(wanted, sizes - 1)
        order = np.lexsort((keys, class_of_group))
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        rank = np.empty(len(keys), dtype=np.int64)
        rank[order] = np.arange(len(keys)) - starts[class_of_group[order]]
        chosen: Mask = (rank < wanted[class_of_group])[group_of_row]
        # of a text that has several classes, one of them may be held out alone
        alone = self._untrained(set(classes[chosen].tolist()), set(classes[~chosen].tolist()))
        kept = np.unique(group_of_row[np.isin(classes, alone)])
        return chosen & ~np.isin(group_of_row, kept)

    def _strata(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """For each label the number of those that are parted as one: of their rarest class."""
        if self._kind == "class":
            return np.arange(self.num_labels)
        counts = Counter[str]()
        for label, count in zip(self._numbers, np.bincount(rows).tolist(), strict=True):
            counts.update(dict.fromkeys(names_in(label), count))
        strata: dict[str | None, int] = {}
        rarest = [
            min(names_in(label), key=lambda name: (counts[name], name), default=None)
            for label in self._numbers
        ]
        return np.array([strata.setdefault(name, len(strata)) for name in rarest], dtype=np.int64)

    def _untrained(self, held_out: set[int], trained: set[int]) -> list[int]:
        """The numbers of held-out labels that name a class which no trained one names."""
        labels = list(self._numbers)
        known = {name for number in trained for name in names_in(labels[number])}
        return [number for number in held_out if not known.issuperset(names_in(labels[number]))]

    def findings(self, held_out: Mask | None) -> list[str]:
        """What people should know, each with what is done about it.

        Args:
            held_out: Which rows are, if they are split off.
        """
        found = [self._repeated(), self._contradicting(), self._unparted(), self._inside()]
        if held_out is not None:
            found.append(self._unmeasured(held_out))
        return [each for each in found if each]

    def shared_with(self, other: Ledger) -> str | None:
        """What there is to say of held-out texts that are trained, too."""
        trained = self._array(self._inputs, np.uint64)
        shared = np.isin(other._array(other._inputs, np.uint64), trained)
        if not shared.any():
            return None
        return (
            f"{shared.sum()} held-out {self._input}s are trained, too"
            f" ({other._lines_of(shared)} of the held-out ones): what is measured on them is"
            " memory; they stay"
        )

    def _repeated(self) -> str | None:
        classes = self._array(self._classes, np.uint64)
        both = self._array(self._inputs, np.uint64) ^ (classes * np.uint64(_ODD))
        _, first = np.unique(both, return_index=True)
        again = np.ones(len(self), dtype=np.bool_)
        again[first] = False
        if not again.any():
            return None
        label = "" if self._kind == "none" else f" and its {self._kind}"
        return (
            f"{again.sum()} rows repeat a {self._input}{label}"
            f" ({self._lines_of(again)}): they stay,"
            " all on one side of the split"
        )

    def _contradicting(self) -> str | None:
        classes = self._array(self._classes, np.int64)
        _, first, group = np.unique(
            self._array(self._inputs, np.uint64), return_index=True, return_inverse=True
        )
        differs = classes != classes[first][group]
        if not differs.any():
            return None
        count = len(np.unique(group[differs]))
        return (
            f"{count} {self._input}{'s have' if count > 1 else ' has'} several"
            f" {_SEVERAL[self._kind]} ({self._lines_of(differs)} say otherwise than a line before):"
            " they stay, and no model can get them all right"
        )

    def _unparted(self) -> str | None:
        """What there is to say of classes that look like several."""
        is_list = self._kind == "classes" and self._config.labels is None
        if not is_list or any(len(names_in(label)) > 1 for label in self._numbers):
            return None
        several = ((name, mark) for name in self.classes for mark in _SEPARATORS if mark in name)
        name, mark = next(several, ("", ""))
        return name and (
            f"no row has several classes, and {name[:40]!r} is one: if {mark!r} stands between two,"
            f" set label_separator, which is {self._config.label_separator!r}"
        )

    def _inside(self) -> str | None:
        """What there is to say of words that all are part of an entity."""
        if self._kind != "tags" or OUTSIDE in self.classes:
            return None
        return (
            f"no word has the class {OUTSIDE!r}, which stands for none: f1, precision and recall"
            " take every word for part of an entity; accuracy does not"
        )

    @property
    def _input(self) -> str:
        return "text" if self._config.text_pair is None else "pair"

    def _unmeasured(self, held_out: Mask) -> str | None:
        measured = {name for label in self.label_counts(held_out) for name in names_in(label)}
        return unmeasured(self.classes.keys() - measured)

    def _lines_of(self, rows: Mask) -> str:
        lines = self._array(self._lines, np.int64)[rows]
        return places(self._unit, lines[:_NAMED].tolist(), len(lines))

    @staticmethod
    def _array(values: array[int], dtype: Any) -> npt.NDArray[Any]:
        return np.frombuffer(values, dtype=values.typecode).astype(dtype, copy=False)


def _hash(text: str) -> int:
    """64 bits of it."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def unmeasured(labels: Iterable[str]) -> str | None:
    """What there is to say of classes of which nothing is held out."""
    missing = sorted(labels)
    if not missing:
        return None
    named = ", ".join(repr(label[:40]) for label in missing[:_NAMED])
    more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    classes = "classes" if len(missing) > 1 else "class"
    return f"of the {classes} {named}{more} no text is held out: trained, not measured"


class Blanks:
    """Rows in which something is missing: how many, of which kind, and where the first are."""

    def __init__(self) -> None:
        self._found: dict[str, list[int]] = {}
        self._counts: dict[str, int] = {}
        self._unit = "row"

    def add(self, row: Row) -> None:
        """Note a row that lacks something."""
        reason = str(row.lacks)
        self._unit, _, line = row.place.partition(" ")
        self._counts[reason] = self._counts.get(reason, 0) + 1
        lines = self._found.setdefault(reason, [])
        if len(lines) < _NAMED:
            lines.append(int(line))

    def described(self) -> list[str]:
        """Each kind, with its lines."""
        return [
            f"{places(self._unit, lines, self._counts[reason])}: {reason}"
            for reason, lines in self._found.items()
        ]


def places(unit: str, first: list[int], count: int) -> str:
    """Such as `lines 3, 4, 9 and 34 more`."""
    named = ", ".join(str(line) for line in first)
    more = f" and {count - len(first)} more" if count > len(first) else ""
    return f"{unit}{'s' if count > 1 else ''} {named}{more}"
