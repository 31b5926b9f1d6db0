"""CSV and TSV files, row by row, by RFC 4180 and strictly.

Invariant: each row has the columns of the header, and no row is hidden in another one's quotes.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Final

from workers.texts.labels import is_number, kind_of
from workers.texts.text_file import RawRow, TextFile
from workers.texts.values import EMPTY, MAX_TEXT

_DELIMITERS: Final = (",", ";", "\t", "|")

#: How Excel says in a first line what separates the columns.
_SEPARATOR_LINE: Final = re.compile(r'"?sep=(.)"?\s*')

#: So many lines of a row are looked at to tell whether they are rows of their own.
_LINES_LOOKED_AT: Final = 20

#: One is enough to refuse a file; this many to find one among those that are as they should be.
_SUSPECTS_KEPT: Final = 10_000


def rows(file: TextFile) -> Iterator[RawRow]:
    """The rows, numbered by the line on which each begins; blank lines are left out.

    Raises:
        InvalidInputError: A row is none of this file's header.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_TEXT))
    with file.opened() as stream:
        yield from _Reader(file, file.lines(stream)).rows()


class _Reader:
    """One pass over a file."""

    def __init__(self, file: TextFile, lines: Iterator[str]) -> None:
        self._file = file
        #: the lines of the row that is being read
        self._pending: list[str] = []
        first = next(lines, "")
        #: the lines before the first that the parser is given
        self._skipped = 0
        self._delimiter = file.config.separator
        if named := _SEPARATOR_LINE.fullmatch(first):
            self._delimiter = self._delimiter or named[1]
            self._skipped, first = 1, next(lines, "")
        self._lines = chain([first], lines)
        self._names: list[str] = []
        #: the column of the labels, where there is one
        self._label: int | None = None
        self._labels: set[str] = set()
        #: rows that may hold others, with the labels that those would have
        self._suspects: list[tuple[int, set[str]]] = []

    def rows(self) -> Iterator[RawRow]:
        parser = self._parser()
        if parser is None:
            return
        positions = self._file.positions(self._names)
        text = positions[0]
        if self._file.config.label_columns:
            self._label = positions[1]
        width = len(self._names)
        for number, fields in self._parsed(parser):
            if len(fields) != width or not fields[text] or fields[text].isspace():
                if not any(field.strip() for field in fields):
                    if len(fields) > 1:
                        yield RawRow(number, (), EMPTY)
                    continue
                if len(fields) != width:
                    raise self._refuse_width(number, len(fields))
            if self._label is not None:
                self._labels.add(fields[self._label].strip())
            yield RawRow(number, [fields[position] for position in positions])
        self._refuse_hidden_rows()

    def _parser(self) -> Any:
        """What parses the rows below the header, which it reads; None for a file without one."""
        skipped = 0
        for line in self._lines:
            if line.strip():
                break
            skipped += 1
        else:
            return None
        self._skipped += skipped
        options = _dialect(self._file, self._delimiter, line)
        parser = csv.reader(self._remembered(chain([line], self._lines)), **options)
        self._delimiter = options["delimiter"]
        _, names = next(self._parsed(parser))
        self._names = [name.strip() for name in names]
        return parser

    def _remembered(self, lines: Iterator[str]) -> Iterator[str]:
        for line in lines:
            self._pending.append(line)
            yield line

    def _parsed(self, parser: Any) -> Iterator[tuple[int, list[str]]]:
        """Rows, each with the line on which it begins."""
        while True:
            before = parser.line_num
            number = self._skipped + before + 1
            try:
                fields = next(parser, None)
            except csv.Error as error:
                place = f"line {number}"
                raise self._file.refusal(self._explain(error), place) from error
            if fields is None:
                return
            if self._repeats_header(fields):
                raise self._file.refusal("the header again; leave it out", f"line {number}")
            if parser.line_num - before > 1:
                self._suspect(number)
            self._pending.clear()
            yield number, fields

    def _repeats_header(self, fields: list[str]) -> bool:
        if not fields or not self._names or fields[0].strip() != self._names[0]:
            return False
        return [field.strip() for field in fields] == self._names

    def _suspect(self, number: int) -> None:
        """Remember a row all of whose lines but the last look like rows of their own.

        Without labels a text of many lines is nothing to wonder at.
        """
        if self._label is None:
            return
        found = set()
        for line in self._pending[:-1][:_LINES_LOOKED_AT]:
            fields = line.rstrip("\r\n").split(self._delimiter)
            if not self._names or len(fields) != len(self._names):
                return
            found.add(fields[self._label].strip().strip('"'))
        if len(self._suspects) < _SUSPECTS_KEPT:
            self._suspects.append((number, found))

    def _refuse_hidden_rows(self) -> None:
        for number, labels in self._suspects:
            if labels <= self._labels or self._are_numbers(labels):
                raise self._file.refusal(
                    "a quote opens a text that holds whole rows; write a quote that is part of a"
                    f' text as "", within quotes, or set {self._quoting()}: none; if the text is'
                    " meant, put it on one line",
                    f"line {number}",
                )

    def _are_numbers(self, labels: set[str]) -> bool:
        """Whether they could be labels, where no two rows need have the same."""
        return kind_of(self._file.config) == "number" and all(map(is_number, labels))

    def _refuse_width(self, number: int, width: int) -> Exception:
        return self._file.refusal(
            f"{width} columns, where the header has {len(self._names)}; put a text that holds"
            f" {self._delimiter!r} in quotes, or mend the row",
            f"line {number}",
        )

    def _explain(self, error: csv.Error) -> str:
        if "end of data" in str(error):
            problem = "a quote opens there and never closes"
        elif "field limit" in str(error):
            problem = f"a text of more than {MAX_TEXT} characters; is a quote not closed?"
        else:
            problem = "a quote closes amid a text"
        return (
            f'{problem}; write a quote that is part of a text as "", within quotes, or set'
            f" {self._quoting()}: none (or backslash)"
        )

    def _quoting(self) -> str:
        return f"{self._file.field.rpartition('.')[0]}.quoting"


def _dialect(file: TextFile, delimiter: str | None, header: str) -> dict[str, Any]:
    """How the rows are written: as the study says, else as the header tells."""
    options: dict[str, Any] = {"strict": True}
    if file.config.quoting == "none":
        options["quoting"] = csv.QUOTE_NONE
    elif file.config.quoting == "backslash":
        options |= {"escapechar": "\\", "doublequote": False}
    options["delimiter"] = delimiter or _find_delimiter(file, header, options)
    names = _names(header, options)
    # who writes `text, label` writes `a text, a label` below
    options["skipinitialspace"] = len(names) > 1 and all(name[:1] == " " for name in names[1:])
    return options


def _find_delimiter(file: TextFile, header: str, options: dict[str, Any]) -> str:
    """The delimiter by which the header has the columns that are asked for."""
    usual = "\t" if file.path.suffix.lower() == ".tsv" else ","
    wanted = {*file.config.columns}
    candidates = sorted(_DELIMITERS, key=lambda each: each != usual)
    split = {each: _names(header, {**options, "delimiter": each}) for each in candidates}
    for delimiter, names in split.items():
        if wanted <= {name.strip() for name in names}:
            return delimiter
    return max(candidates, key=lambda each: len(split[each]))


def _names(header: str, options: dict[str, Any]) -> Sequence[str]:
    try:
        return next(csv.reader([header], **{**options, "strict": False}), [])
    except csv.Error:
        return []
