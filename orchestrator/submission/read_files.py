"""Data files, read to their end before a study is handed in; once for each state of a file.

Invariant: a file that was changed since, or is to be read otherwise, is read again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from workers.protocol.finetune import HUB, DataConfig
from workers.remote.hub_data import HubData, directory, is_directory, read_hub
from workers.remote.patience import Patience
from workers.texts.held_out import HeldOut
from workers.texts.rows import Row, existing_file, is_file, read_rows
from workers.texts.split import Surveyed, check_rows

#: Raised when what is checked changes.
_CHECKS: Final = 8

#: What lies on a hub is read to its end up to this size; the workers read the rest.
_MOST_FETCHED: Final = 200 * 2**20

#: Of the data sets that were found good, so many are remembered.
_REMEMBERED: Final = 200

#: Of a data set with more classes, they are not remembered.
_MOST_CLASSES: Final = 10_000

#: What changes nothing of how a file is read.
_OTHER: Final = {"max_length", "block_size", "across_texts"}


@dataclass(frozen=True, slots=True)
class CheckedData:
    """A data set that was found good."""

    findings: list[str]
    """What people should know of it, a line each."""
    held_out: HeldOut | None = None
    """What is held out; None where not all of it was read here."""
    num_trained: int | None = None
    """Rows that are trained on; None likewise."""
    classes: list[str] | None = None
    """Those that are learned, none of them of numbers; None likewise, or where they are many."""


_CHECKED: Final = TypeAdapter(CheckedData)


class ReadFiles:
    """The data sets that were found good.

    Args:
        home: The fleet's, below which they are remembered; None remembers nothing.
    """

    def __init__(self, home: Path | None) -> None:
        self._folder = None if home is None else home / "cache" / "checked"
        self._good: dict[str, CheckedData] = {}

    def check(self, data: DataConfig) -> CheckedData:
        """Read a data set, unless it was found good.

        Raises:
            InvalidInputError: A file, or a row of it, cannot be used.
            RemoteUnavailableError: A hub or a file share did not answer, whatever was tried.
        """
        return Patience().ask(f"config.data.source = {data.source!r}", lambda: self._check(data))

    def _check(self, data: DataConfig) -> CheckedData:
        before = _fingerprint(data)
        known = self._good.get(before)
        known = self._remembered(before) if known is None else known
        if known is not None:
            return known
        findings: list[str] = []
        can_read = _sources_to_read(data).__contains__
        surveyed = check_rows(data, "config.data", _read, can_read, findings.append)
        found = self._good[before] = _checked(findings, surveyed)
        if before == _fingerprint(data):  # else it changed while it was read
            self._remember(before, found)
        return found

    def _remembered(self, digest: str) -> CheckedData | None:
        if self._folder is None:
            return None
        try:
            return _CHECKED.validate_json((self._folder / digest).read_bytes())
        except (OSError, ValueError):
            return None

    def _remember(self, digest: str, found: CheckedData) -> None:
        if self._folder is None:
            return
        with suppress(OSError):  # then it is read again the next time
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / digest).write_bytes(_CHECKED.dump_json(found))
            known = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime)
            for old in known[:-_REMEMBERED]:
                old.unlink(missing_ok=True)


def _checked(findings: list[str], surveyed: Surveyed | None) -> CheckedData:
    if surveyed is None:
        return CheckedData(findings)
    classes = list(surveyed.classes) if len(surveyed.classes) <= _MOST_CLASSES else None
    return CheckedData(findings, surveyed.held_out, surveyed.num_trained, classes)


def _read(source: str, data: DataConfig, field: str) -> Iterator[Row]:
    return read_rows(source, data, field) if is_file(source) else read_hub(source, data, field)


def _sources_to_read(data: DataConfig) -> set[str]:
    """The sources whose rows are read here: files, and what is small of a hub.

    Raises:
        InvalidInputError: A hub source has no such configuration or split.
    """
    found = {source for source in data.sources if is_file(source)}
    for source, role in zip(data.sources, ("source", "validation"), strict=False):
        if source.startswith(HUB):
            on_hub = HubData(source, data, f"config.data.{role}")
            if on_hub.num_bytes(on_hub.split()) <= _MOST_FETCHED:
                found.add(source)
    return found


def _fingerprint(data: DataConfig) -> str:
    """Changes when a file does, and when it is to be read otherwise."""
    states = []
    for source, role in zip(data.sources, ("source", "validation"), strict=False):
        for path in _paths(source, f"config.data.{role}"):
            state = path.stat()
            states.append([state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns])
    content = [_CHECKS, data.model_dump(mode="json", exclude=_OTHER), states]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _paths(source: str, field: str) -> list[Path]:
    """The files of a source on this host."""
    if is_file(source):
        return [existing_file(source, field)]
    return sorted(directory(source).rglob("*")) if is_directory(source) else []
