"""Labels that are text, in a data set that names its classes: names, or the numbers of classes.

Invariant: all labels of a split are read one way; where both would do, and differ, neither is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from workers.protocol.data_options import DataConfig
from workers.protocol.errors import InvalidInputError
from workers.texts.class_names import ClassNames, Reading
from workers.texts.labels import kind_of, names_in
from workers.texts.rows import Row


class WrittenLabels:
    """Reads the labels of one split.

    Args:
        names: Of its classes.
        config: The data set.
        source: Where the split is, for messages.
        field: The setting that names the source, for messages.
    """

    def __init__(self, names: ClassNames, config: DataConfig, source: str, field: str) -> None:
        self._names = names
        self._is_set = kind_of(config) == "classes"
        self._where = f"{field} = {source!r}"
        self._setting = f"{field.rpartition('.')[0]}.labels_as"
        self._reading: Reading | None = None if config.labels_as == "auto" else config.labels_as

    def read(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Rows with the names of their classes; kept back until it is known how they are written.

        Raises:
            InvalidInputError: A label is no class, they are written both ways, or no row tells how.
        """
        kept: list[Row] = []
        for row in rows:
            if row.is_written:
                self._learn(row)
            if self._reading is None and (kept or self._is_open(row)):
                kept.append(row)
                continue
            yield from map(self._named, [*kept, row])
            kept.clear()
        if kept:
            raise self._undecided(next(filter(self._is_open, kept)))

    def _learn(self, row: Row) -> None:
        """See how labels are written, by one that can be meant in one way alone."""
        labels = names_in(row.label)
        for label in labels:
            if not self._names.readings([label]):
                raise self._refusal(row, self._names.refusal(label))
        possible = self._names.readings(labels)
        if self._reading is None and len(possible) == 1:
            (self._reading,) = possible
        if not possible or (self._reading is not None and self._reading not in possible):
            raise self._mixed(row)

    def _is_open(self, row: Row) -> bool:
        """Whether a row, whose labels can be meant both ways, would have two classes."""
        labels = names_in(row.label)
        return row.is_written and self._names.of_text(labels) != labels

    def _named(self, row: Row) -> Row:
        if not row.is_written or self._reading != "numbers":
            return row
        found = self._names.of_text(names_in(row.label))
        if isinstance(row.label, str):
            return row._replace(label=found[0])
        return row._replace(label=tuple(sorted(set(found))) if self._is_set else found)

    def _mixed(self, row: Row) -> InvalidInputError:
        meant = f"{self._reading}" if self._reading else "names, or numbers,"
        return self._refusal(
            row,
            f"{' '.join(names_in(row.label))[:60]!r}, where labels are the {meant} of classes;"
            f" write all of them one way, or mend {self._setting}",
        )

    def _undecided(self, row: Row) -> InvalidInputError:
        label = next(each for each in names_in(row.label) if self._names.of_text([each]) != (each,))
        (other,) = self._names.of_text([label])
        return self._refusal(
            row,
            f"{label!r} is the name of a class, and the number of {other!r}, and no row tells which"
            f" is meant; set {self._setting}: names or numbers",
        )

    def _refusal(self, row: Row, problem: str) -> InvalidInputError:
        return InvalidInputError(f"{self._where}, {row.place}: {problem}")
