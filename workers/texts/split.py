"""The training and the held-out side of labelled texts.

Invariant: equal texts lie on one side, and every class that is held out is trained, too.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from workers.protocol.errors import InvalidInputError, nearest
from workers.protocol.finetune import DataConfig
from workers.texts.rows import Row, is_file, read_rows

#: Beyond that many, the labels are something else.
_MAX_CLASSES: Final = 100_000

#: Reads the rows of a source; told the setting that names it.
Reader = Callable[[str, DataConfig, str], Iterator[Row]]


class LabelledTexts(NamedTuple):
    """Texts and the class of each, as text; equally long."""

    texts: list[str]
    labels: list[str]


def split_rows(config: DataConfig, read: Reader) -> tuple[LabelledTexts, LabelledTexts]:
    """Read what a study trains on, and what it is measured on.

    Without a file of its own, a text is held out by the hash of its content, so that equal texts
    fall on the same side, in every trial and on every host. Of a class that would be held out
    alone, all texts are trained.

    Raises:
        InvalidInputError: A source cannot be used, or one side is empty.
    """
    sides = (LabelledTexts([], []), LabelledTexts([], []))
    for is_held_out, row in assigned(config, read, "data"):
        side = sides[is_held_out]
        side.texts.append(row.text)
        side.labels.append(row.label)
    if config.validation is not None:
        return sides
    return _all_trained(*sides)


def check_files(config: DataConfig, section: str) -> None:
    """Read all rows of the files as `split_rows` does, and keep none.

    Args:
        config: What is not in files is left out.
        section: The setting that holds it, for messages.

    Raises:
        InvalidInputError: As `split_rows` would.
    """
    if is_file(config.source) and (config.validation is None or is_file(config.validation)):
        rows: Iterator[object] = assigned(config, read_rows, section)
    elif config.validation is not None and is_file(config.validation):
        rows = read_rows(config.validation, config, f"{section}.validation")
    elif is_file(config.source):
        rows = read_rows(config.source, config, f"{section}.source")
    else:
        return
    for _ in rows:
        pass


def assigned(config: DataConfig, read: Reader, section: str) -> Iterator[tuple[bool, Row]]:
    """All rows, each with whether it is held out; checked as a whole when the last has gone by."""
    census = _Census(config, section)
    for row in read(config.source, config, f"{section}.source"):
        is_held_out = config.validation is None and _is_held_out(row.text, config)
        census.add(row, is_held_out=is_held_out)
        yield is_held_out, row
    census.check_labels()
    if config.validation is not None:
        for row in read(config.validation, config, f"{section}.validation"):
            census.add_validation(row)
            yield True, row
    census.check_sides()


def _is_held_out(text: str, config: DataConfig) -> bool:
    digest = hashlib.sha256(f"{config.seed}\0{text}".encode()).digest()
    return int.from_bytes(digest[:8]) < config.validation_fraction * 2**64


def _all_trained(
    train: LabelledTexts, held_out: LabelledTexts
) -> tuple[LabelledTexts, LabelledTexts]:
    """Move the texts of classes that are held out alone to the training side."""
    alone = set(held_out.labels) - set(train.labels)
    if not alone:
        return train, held_out
    rows = list(zip(*held_out, strict=True))
    moving = {text for text, label in rows if label in alone}
    left = LabelledTexts([], [])
    for text, label in rows:
        side = train if text in moving else left
        side.texts.append(text)
        side.labels.append(label)
    return train, left


class _Census:
    """Which classes went by, and on which side."""

    def __init__(self, config: DataConfig, section: str) -> None:
        self._config = config
        self._section = section
        self._trained: Counter[str] = Counter()
        self._held_out: Counter[str] = Counter()

    def add(self, row: Row, *, is_held_out: bool) -> None:
        (self._held_out if is_held_out else self._trained)[row.label] += 1
        if len(self._trained) > _MAX_CLASSES:
            raise InvalidInputError(
                f"{self._label} has more than {_MAX_CLASSES} classes; is it the right column?"
            )

    def add_validation(self, row: Row) -> None:
        if row.label not in self._trained:
            some = ", ".join(sorted(self._trained)[:10])
            raise InvalidInputError(
                f"{self._section}.validation = {self._config.validation!r}, {row.place}: the class"
                f" {row.label!r} is none of {self._config.source!r} (it has {some}"
                f"{', ...' if len(self._trained) > 10 else ''})"
                f"{nearest(row.label, self._trained)}; name classes alike in both files, or leave"
                " the row out"
            )
        self._held_out[row.label] += 1

    def check_labels(self) -> None:
        labels = {*self._trained, *self._held_out}
        if not labels:
            raise InvalidInputError(
                f"{self._section}.source = {self._config.source!r}: it holds no rows; fill it"
            )
        if len(labels) == 1:
            raise InvalidInputError(
                f"{self._label} holds one class only, {next(iter(labels))!r}; classification needs"
                " two or more"
            )
        self._refuse_alike(labels, _canonical, "differ in how accents are encoded")
        if all(_is_whole(label) for label in labels):
            self._refuse_alike(labels, lambda label: label.partition(".")[0], "are one number")

    def check_sides(self) -> None:
        if self._config.validation is not None:
            if not self._held_out:
                raise InvalidInputError(
                    f"{self._section}.validation = {self._config.validation!r}: it holds no rows;"
                    " fill it, or leave it out"
                )
            return
        held_out = sum(self._held_out[label] for label in self._trained)
        for name, count in (("training", self._trained.total()), ("held-out", held_out)):
            if not count:
                total = self._trained.total() + self._held_out.total()
                raise InvalidInputError(
                    f"{self._section}.source = {self._config.source!r}: of {total} rows none is"
                    f" left for the {name} side; give more rows of each class, or another"
                    f" {self._section}.validation_fraction than {self._config.validation_fraction}"
                )

    def _refuse_alike(self, labels: Iterable[str], same: Callable[[str], str], how: str) -> None:
        spellings: dict[str, list[str]] = defaultdict(list)
        for label in sorted(labels):
            spellings[same(label)].append(label)
        for group in spellings.values():
            if len(group) > 1:
                raise InvalidInputError(
                    f"{self._label} holds {group[0]!a} and {group[1]!a}, which {how};"
                    " write the class one way"
                )

    @property
    def _label(self) -> str:
        return f"{self._section}.label = {self._config.label!r} of {self._config.source!r}"


def _canonical(label: str) -> str:
    return unicodedata.normalize("NFC", label)


def _is_whole(label: str) -> bool:
    """Whether a label is an integer, perhaps written `1.0`."""
    whole, point, fraction = label.partition(".")
    return whole.isdecimal() and (not point or fraction.strip("0") == "")
