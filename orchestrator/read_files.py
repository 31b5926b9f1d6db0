"""Data files, read to their end before a study is handed in; once for each state of a file.

Invariant: a file that was changed since, or is to be read otherwise, is read again.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Final

from workers.protocol.finetune import DataConfig
from workers.texts.rows import existing_file, is_file
from workers.texts.split import check_files

#: Raised when what is checked changes.
_CHECKS: Final = 1

#: Of the data sets that were found good, so many are remembered.
_REMEMBERED: Final = 200

#: What changes nothing of how a file is read.
_OTHER: Final = {"max_length"}


class ReadFiles:
    """The data sets that were found good.

    Args:
        home: The fleet's, below which they are remembered; None remembers nothing.
    """

    def __init__(self, home: Path | None) -> None:
        self._folder = None if home is None else home / "cache" / "checked"
        self._good: set[str] = set()

    def check(self, data: DataConfig) -> None:
        """Read a data set, unless it was found good.

        Raises:
            InvalidInputError: A file, or a row of it, cannot be used.
        """
        before = _fingerprint(data)
        if before in self._good or self._is_remembered(before):
            return
        check_files(data, "config.data")
        self._good.add(before)
        if before == _fingerprint(data):  # else it changed while it was read
            self._remember(before)

    def _is_remembered(self, digest: str) -> bool:
        return self._folder is not None and (self._folder / digest).exists()

    def _remember(self, digest: str) -> None:
        if self._folder is None:
            return
        with suppress(OSError):  # then it is read again the next time
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / digest).touch()
            known = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime)
            for old in known[:-_REMEMBERED]:
                old.unlink(missing_ok=True)


def _fingerprint(data: DataConfig) -> str:
    """Changes when a file does, and when it is to be read otherwise."""
    states = []
    for role, source in (("source", data.source), ("validation", data.validation)):
        if source is not None and is_file(source):
            state = existing_file(source, f"config.data.{role}").stat()
            states.append([state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns])
    content = [_CHECKS, data.model_dump(mode="json", exclude=_OTHER), states]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]
