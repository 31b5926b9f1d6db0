"""One entry of the cache: a folder that says what it was built from, and what its files hold.

`entry.json` names every other file of the folder with its size and sum, by paths within it. Who
builds or uses an entry holds a shared lock on that file; when it was changed, it was last used.

Invariant: an entry that `check` lets pass holds what was built, to the bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from workers.disk.file_locks import FileLock, LocksMissingError, lock_file

MANIFEST: Final = "entry.json"

#: The kinds of entries that grow while they are used. Their manifests name no files: who writes
#: them sees to it that none is taken in halves, and their size is what lies there.
GROWING: Final = frozenset({"compiled"})

#: In an entry that grows: whoever used it found fault with what lies there.
_FAULTY: Final = ".faulty"

#: What is read at once while sums are made.
_CHUNK_BYTES: Final = 4 * 2**20

#: Told how far work has come: what, how much of it, of how much (0 is unknown). What it raises ends
#: the work.
Progress = Callable[[str, int, int], None]


def unwatched(_what: str, _done: int, _total: int) -> None:
    """Tell nobody."""


class DamagedEntryError(Exception):
    """An entry is not what was built; why."""


class EntryInUseError(OSError):
    """A damaged entry cannot make way: others use it, and write there."""


class FileFacts(BaseModel):
    """What a file holds."""

    model_config = ConfigDict(frozen=True)

    num_bytes: int
    xxh3: str
    """XXH3 of 128 bits, which finds damage at the speed of memory; it does not stop a forger."""


class Manifest(BaseModel):
    """What `entry.json` holds."""

    model_config = ConfigDict(frozen=True)

    key: dict[str, Any]
    """What the content follows from; its digest is the folder's name."""
    about: dict[str, Any]
    """For people."""
    built_at: float
    files: dict[str, FileFacts]

    @property
    def num_bytes(self) -> int:
        """The size of all files together."""
        return sum(file.num_bytes for file in self.files.values())


class Entry:
    """A whole entry in use: for as long as this lives, nobody removes its files."""

    def __init__(self, path: Path, lock: FileLock | None) -> None:
        self.path = path
        self._lock = lock

    def leave(self) -> None:
        """Use it no more; so does whoever drops the last reference to it."""
        if self._lock is not None:
            self._lock.release()

    def note_use(self) -> None:
        """Note that it is used now; those that were not for the longest are removed first."""
        with suppress(OSError):  # another user's, or on a disk that is only read
            os.utime(self.path / MANIFEST)


def digest_of(key: Mapping[str, Any]) -> str:
    """The name of the entry with this key, 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def lock_for_use(folder: Path) -> FileLock | None:
    """Keep an entry, or a draft of one, from being removed.

    Returns:
        The lock; None where there are none.

    Raises:
        BlockingIOError: It is being removed just now.
        OSError: It is not there, or cannot be opened.
    """
    try:
        lock = lock_file(folder / MANIFEST, shared=True)
    except LocksMissingError:
        return None
    if lock is None:
        raise BlockingIOError(f"{folder} is being removed")
    return lock


def seal(folder: Path, key: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write the manifest of a folder whose other files are written; into the file that is there.

    Raises:
        OSError: The disk takes no more.
    """
    files = {
        name: FileFacts(num_bytes=path.stat().st_size, xxh3=_sum_of(path, lambda _: None))
        for name, path in _files(folder)
    }
    manifest = Manifest(key=dict(key), about=dict(about), built_at=time.time(), files=files)
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:  # the same one: it is locked
        file.write(manifest.model_dump_json(indent=1))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an entry, as it is written there.

    Raises:
        DamagedEntryError: There is none that can be read.
    """
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        raise DamagedEntryError(f"{MANIFEST} cannot be read: {error}") from error


def check_key(folder: Path, digest: str) -> Manifest:
    """The manifest of an entry, which is the one of that name.

    Raises:
        DamagedEntryError: There is none that can be read, or it is another one's.
    """
    manifest = read_manifest(folder)
    if digest_of(manifest.key) != digest:
        raise DamagedEntryError(f"{MANIFEST} is of another entry")
    return manifest


def is_faulty(folder: Path) -> bool:
    """Whether nobody is to begin to use an entry that grows."""
    return folder.parent.name in GROWING and (folder / _FAULTY).exists()


def mark_faulty(folder: Path) -> None:
    """Have nobody begin to use an entry that grows, though others go on to.

    Raises:
        OSError: It is gone, or another user's, or its disk takes no more.
    """
    (folder / _FAULTY).touch()


def check(folder: Path, digest: str, progress: Progress = unwatched) -> None:
    """Read an entry, and compare it to what was built.

    Raises:
        DamagedEntryError: A file is missing, too many, or not as it was written.
    """
    manifest = check_key(folder, digest)
    found = dict(_files(folder))
    if found.keys() != manifest.files.keys():
        names = ", ".join(sorted(found.keys() ^ manifest.files.keys()))
        raise DamagedEntryError(f"missing, or not of it: {names}")
    for name, facts in manifest.files.items():
        if (size := found[name].stat().st_size) != facts.num_bytes:
            raise DamagedEntryError(f"{name} has {size} bytes and was built with {facts.num_bytes}")
    _check_sums(found, manifest, progress)


def _check_sums(found: Mapping[str, Path], manifest: Manifest, progress: Progress) -> None:
    done = 0

    def note(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress("checking cached bytes", done, manifest.num_bytes)

    for name, facts in manifest.files.items():
        try:
            is_whole = _sum_of(found[name], note) == facts.xxh3
        except OSError as error:
            raise DamagedEntryError(f"{name} cannot be read: {error}") from error
        if not is_whole:
            raise DamagedEntryError(f"{name} is not what was written")


def _sum_of(path: Path, note: Callable[[int], None]) -> str:
    total = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            total.update(chunk)
            note(len(chunk))
    return total.hexdigest()


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """All files of an entry but its manifest, by their paths within it."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name != MANIFEST and not path.is_dir():
            yield name, path
