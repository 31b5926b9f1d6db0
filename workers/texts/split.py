"""The training and the held-out side of labelled texts.

Invariant: equal texts lie on one side, and every class that is held out is trained, too.
"""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Final, NamedTuple

import numpy as np

from workers.protocol.errors import InvalidInputError, nearest
from workers.protocol.finetune import DataConfig
from workers.texts.held_out import HeldOut
from workers.texts.labels import Label, kind_of, names_in
from workers.texts.ledger import Blanks, Ledger, Mask, unmeasured
from workers.texts.rows import Row, is_file, read_rows
from workers.texts.values import EMPTY, STANDS

#: Beyond that many, the labels are something else.
_MAX_CLASSES: Final = 100_000

#: As many steps of float32 numbers have to spread over, to be told apart.
_STEPS_A_SPREAD: Final = 10

#: Reads the rows of a source; told the setting that names it.
Reader = Callable[[str, DataConfig, str], Iterator[Row]]

#: Told what people should know of their data, a line each.
Tell = Callable[[str], None]


def _untold(_finding: str) -> None:
    pass


class LabelledTexts(NamedTuple):
    """Texts and the label of each; equally long."""

    texts: list[str]
    labels: list[Label]
    pairs: list[str]
    """The second text of each, where pairs are classified; else empty."""

    def add(self, text: str, label: Label, pair: str | None) -> None:
        """Take a row in."""
        self.texts.append(text)
        self.labels.append(label)
        if pair is not None:
            self.pairs.append(pair)


def split_rows(
    config: DataConfig, read: Reader, tell: Tell = _untold
) -> tuple[LabelledTexts, LabelledTexts]:
    """Read what a study trains on, and what it is measured on.

    Without a source of its own, of each class as many texts are held out as the fraction says, by
    the hash of their content, so that equal texts fall on the same side, in every trial and on
    every host.

    Args:
        config: The data set.
        read: Reads a source.
        tell: Told what people should know of the data.

    Raises:
        InvalidInputError: A source cannot be used, or one side is empty.
    """
    sides = (LabelledTexts([], [], []), LabelledTexts([], [], []))

    def keep(row: Row, side: int) -> None:
        sides[side].add(row.text, row.label, row.pair)

    chosen = _survey(config, read, "data", tell, keep).chosen
    return sides if chosen is None else _parted(sides[0], chosen)


def check_rows(
    config: DataConfig,
    section: str,
    read: Reader = read_rows,
    can_read: Callable[[str], bool] = is_file,
    tell: Tell = _untold,
) -> Surveyed | None:
    """Read all rows as `split_rows` does, and keep none.

    Returns:
        What they turned out to be; None where not all sources are read here.

    Args:
        config: The data set.
        section: The setting that holds it, for messages.
        read: Reads a source.
        can_read: Which sources are read here; the others are left out.
        tell: Told what people should know of the data.

    Raises:
        InvalidInputError: As `split_rows` would.
    """
    if all(map(can_read, config.sources)):
        return _survey(config, read, section, tell)
    for source, role in zip(config.sources, ("source", "validation"), strict=False):
        if can_read(source):
            rows = _Filled(config, f"{section}.{role}", source, read, tell)
            for _ in rows:
                pass
    return None


class Surveyed(NamedTuple):
    """What a data set turned out to be."""

    held_out: HeldOut
    num_trained: int
    """Rows that are trained on."""
    classes: Sequence[str]
    """Those that are learned, or of numbers, none."""
    chosen: Mask | None
    """Which rows of the source are held out, if they are split off."""


def _survey(
    config: DataConfig,
    read: Reader,
    section: str,
    tell: Tell,
    keep: Callable[[Row, int], None] = lambda _row, _side: None,
) -> Surveyed:
    """Read all rows, and check them as a whole."""
    ledger = Ledger(config)
    census = _Census(config, section, ledger)
    for row in _Filled(config, f"{section}.source", config.source, read, tell):
        ledger.add(row)
        census.check_number()
        keep(row, 0)
    census.check_labels()
    chosen: Mask | None = None
    num_trained = len(ledger)
    if config.held_out is None:
        chosen = ledger.held_out()
        num_trained -= int(chosen.sum())
        census.check_sides(len(ledger), len(ledger) - num_trained)
        found = ledger.findings(chosen)
        held_out = _held_out(ledger.label_counts(chosen), ledger, config)
    else:
        apart, found = _survey_held_out(config, read, section, tell, keep, ledger, census)
        held_out = _held_out(apart.label_counts(), ledger, config)
    for finding in [*found, *held_out.findings(config.task)]:
        tell(f"{section}.source = {config.source!r}: {finding}")
    return Surveyed(held_out, num_trained, list(config.labels or ledger.classes), chosen)


def _held_out(labels: Mapping[Label, int], trained: Ledger, config: DataConfig) -> HeldOut:
    return HeldOut.of_labels(labels, len(config.labels or trained.classes))


def _survey_held_out(
    config: DataConfig,
    read: Reader,
    section: str,
    tell: Tell,
    keep: Callable[[Row, int], None],
    trained: Ledger,
    census: _Census,
) -> tuple[Ledger, list[str]]:
    """Read the held-out rows of a source of their own; what there is to say of both."""
    source = str(config.held_out)
    ledger = Ledger(config)
    for row in _Filled(config, f"{section}.validation", source, read, tell):
        census.check_known(row)
        ledger.add(row)
        keep(row, 1)
    census.check_validation(len(ledger))
    found = [
        *trained.findings(None),
        unmeasured(trained.classes.keys() - ledger.classes.keys()),
        trained.shared_with(ledger),
    ]
    return ledger, [each for each in found if each is not None]


def _parted(rows: LabelledTexts, chosen: Mask) -> tuple[LabelledTexts, LabelledTexts]:
    """The rows on their two sides, in their order."""
    sides = (LabelledTexts([], [], []), LabelledTexts([], [], []))
    pairs: Iterable[str | None] = rows.pairs or repeat(None, len(rows.texts))
    for row, is_held_out in zip(
        zip(rows.texts, rows.labels, pairs, strict=True), chosen.tolist(), strict=True
    ):
        sides[is_held_out].add(*row)
    return sides


class _Filled:
    """The rows of a source that lack nothing; of the others it is said how many they are.

    Raises:
        InvalidInputError: There are others, and they are not to be left out.
    """

    def __init__(
        self, config: DataConfig, field: str, source: str, read: Reader, tell: Tell
    ) -> None:
        self._config = config
        self._field = field
        self._source = source
        self._read = read
        self._tell = tell

    def __iter__(self) -> Iterator[Row]:
        blanks, empty = Blanks(), Blanks()
        for row in self._read(self._source, self._config, self._field):
            if row.lacks is None:
                yield row
            else:
                (empty if row.lacks == EMPTY else blanks).add(row)
        where = f"{self._field} = {self._source!r}"
        for described in empty.described():
            self._tell(f"{where}, {described}; left out")
        for described in blanks.described():
            if self._config.blank == "error":
                setting = f"{self._field.rpartition('.')[0]}.blank"
                # of a label that programs write for none
                otherwise = " name a class that is meant otherwise," if STANDS in described else ""
                raise InvalidInputError(
                    f"{where}, {described}; fill it in, leave the row out,{otherwise} or"
                    f" set {setting}: drop to leave out all such rows"
                )
            self._tell(f"{where}, {described}; left out, as `blank: drop` says")


class _Census:
    """Checks a data set as a whole."""

    def __init__(self, config: DataConfig, section: str, trained: Ledger) -> None:
        self._config = config
        self._section = section
        self._trained = trained
        self._classes = trained.classes

    def check_number(self) -> None:
        if len(self._classes) > _MAX_CLASSES:
            raise InvalidInputError(
                f"{self._label} has more than {_MAX_CLASSES} classes; is it the right column?"
            )

    def check_known(self, row: Row) -> None:
        unknown = [name for name in names_in(row.label) if name not in self._classes]
        if unknown and self._config.labels is None:
            some = ", ".join(sorted(self._classes)[:10])
            raise InvalidInputError(
                f"{self._section}.validation = {self._config.held_out!r}, {row.place}: the class"
                f" {unknown[0]!r} is none of {self._config.source!r} (it has {some}"
                f"{', ...' if len(self._classes) > 10 else ''})"
                f"{nearest(unknown[0], self._classes)}; name classes alike in both files, or leave"
                " the row out"
            )

    def check_labels(self) -> None:
        labels = self._classes.keys()
        if not len(self._trained):
            raise InvalidInputError(
                f"{self._section}.source = {self._config.source!r}: it holds no rows; fill it"
            )
        if kind_of(self._config) == "none":
            return
        if kind_of(self._config) == "number":
            self._refuse_constant()
            self._refuse_too_close()
            return
        if len(labels) < 2 and self._config.labels is None:
            one = f"one class only, {next(iter(labels))!r}" if labels else "no class"
            raise InvalidInputError(f"{self._label} holds {one}; classification needs two or more")
        self._refuse_alike(labels, _canonical, "differ in how accents are encoded")
        if all(_is_whole(label) for label in labels):
            self._refuse_alike(labels, lambda label: label.partition(".")[0], "are one number")

    def _refuse_constant(self) -> None:
        if self._trained.num_labels == 1:
            raise InvalidInputError(
                f"{self._label} holds one number only; there is nothing to tell texts apart by"
            )

    def _refuse_too_close(self) -> None:
        """See that float32, in which numbers are learned, tells them apart."""
        numbers = np.array(list(self._trained.label_counts()))
        step, spread = np.spacing(np.float32(np.abs(numbers).max())), numbers.std()
        if step > spread / _STEPS_A_SPREAD:
            raise InvalidInputError(
                f"{self._label} holds numbers about {numbers.mean():.6g} that differ by"
                f" {spread:.2g} or so; float32, in which they are learned, has steps of {step:.2g}"
                " there; subtract what they have in common"
            )

    def check_validation(self, num_rows: int) -> None:
        if not num_rows:
            raise InvalidInputError(
                f"{self._section}.validation = {self._config.held_out!r}: it holds no rows; fill"
                " it, or leave it out"
            )

    def check_sides(self, num_rows: int, num_held_out: int) -> None:
        for name, count in (("training", num_rows - num_held_out), ("held-out", num_held_out)):
            if not count:
                raise InvalidInputError(
                    f"{self._section}.source = {self._config.source!r}: of {num_rows} rows none is"
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
        role = self._config.roles[1][0]
        named = self._config.labels or self._config.label
        return f"{self._section}.{role} = {named!r} of {self._config.source!r}"


def _canonical(label: str) -> str:
    return unicodedata.normalize("NFC", label)


def _is_whole(label: str) -> bool:
    """Whether a label is an integer, perhaps written `1.0`."""
    whole, point, fraction = label.partition(".")
    return whole.isdecimal() and (not point or fraction.strip("0") == "")
