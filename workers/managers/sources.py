"""Where labelled texts come from: a built-in set, a file, or a hub id."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from importlib.metadata import version
from itertools import chain
from typing import Final

from workers.disk.cache_entry import Progress, unwatched
from workers.managers.cldr import language_id_texts
from workers.protocol.finetune import BUILT_IN_SOURCES, DataConfig
from workers.remote.hub_data import content_of, directory, is_directory, read_hub
from workers.texts.labels import kind_of
from workers.texts.rows import Row, check_built_in, existing_file, is_file, read_rows

#: What is read at once for a fingerprint.
_CHUNK_BYTES: Final = 4 * 2**20


def read_source(source: str, config: DataConfig, field: str) -> Iterator[Row]:
    """The rows of a source, each checked.

    Args:
        source: As the study names it.
        config: The columns, and how a file is written.
        field: The setting that names the source, for messages.

    Raises:
        InvalidInputError: The source, one of its columns or the value of a row cannot be used.
    """
    if is_file(source):
        return read_rows(source, config, field)
    if source in BUILT_IN_SOURCES:
        check_built_in(config, field)
        is_labelled = kind_of(config) != "none"
        pairs = zip(*language_id_texts(), strict=True)
        return (
            Row(f"row {number}", text, label if is_labelled else ())
            for number, (text, label) in enumerate(pairs, 1)
        )
    return read_hub(source, config, field)


def fingerprint(source: str, config: DataConfig, progress: Progress = unwatched) -> str:
    """Changes when the content of a source does, or the library that reads it.

    Args:
        source: As the study names it.
        config: Where it lies on a hub, its revision.
        progress: Told how much of a file was read; what it raises ends the reading.
    """
    if source in BUILT_IN_SOURCES:
        return f"babel {version('babel')}"
    if not is_file(source):
        return f"{content_of(source, config)} datasets {version('datasets')}"
    path = existing_file(source, "data.source")
    digest, size, done = hashlib.sha256(), path.stat().st_size, 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            progress(f"bytes compared of {path.name}", done, size)
    return digest.hexdigest()


def state_of(source: str) -> tuple[int, ...]:
    """Changes when a file is written or replaced; cheaper than a fingerprint.

    Of a directory, all its files; empty for what is on no disk of this host.
    """
    paths = [existing_file(source, "data.source")] if is_file(source) else []
    if is_directory(source):
        paths = sorted(directory(source).rglob("*"))
    return tuple(chain.from_iterable(_state_of(path.stat()) for path in paths))


def _state_of(state: os.stat_result) -> tuple[int, ...]:
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns
