"""What is removed from the cache: entries by age and size, and what dead processes left.

Invariant: nothing that is in use is removed, and nothing that a process which may live is writing.
"""

from __future__ import annotations

import errno
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from workers.coordination.identity import Life, ProcessIdentity
from workers.disk import durable
from workers.disk.cache_entry import (
    GROWING,
    MANIFEST,
    DamagedEntryError,
    Entry,
    EntryInUseError,
    mark_faulty,
    read_manifest,
)
from workers.disk.file_locks import FileLock, LocksMissingError, lock_file
from workers.logs import get_logger

log = get_logger(__name__)

_ENTRY: Final = re.compile(r"[0-9a-f]{32}")
_LEFT: Final = re.compile(r"\.[0-9a-f]{32}\.[0-9a-f]{8}\.(draft|removed)")
_LOCK: Final = re.compile(r"\.[0-9a-f]{32}\.lock")

#: Of whom it cannot be told if they live, or use something, nothing is removed that was written to
#: or used within so many seconds.
_UNKNOWN_SECONDS: Final = 24 * 3600.0

#: Where it is noted when the cache was last swept without a build, and how often it is.
_SWEPT: Final = ".swept"
_SWEEP_SECONDS: Final = 3600.0


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """What the cache may keep."""

    max_bytes: float
    """Of all entries together; those that were not used for the longest go first."""
    max_age_seconds: float
    """Since its last use, after which an entry goes."""


@dataclass(frozen=True, slots=True)
class CachedEntry:
    """An entry as it lies there."""

    path: Path
    kind: str
    num_bytes: int
    built_at: float
    about: dict[str, Any]
    used_at: float
    is_in_use: bool

    @property
    def digest(self) -> str:
        """What it is called within its kind."""
        return self.path.name


class CacheSweep:
    """Lists and removes entries of one folder.

    Args:
        folder: `FLEET_CACHE`.
        limits: What may be kept.
    """

    def __init__(self, folder: Path, limits: CacheLimits) -> None:
        self._folder = folder
        self._limits = limits

    def entries(self) -> list[CachedEntry]:
        """All entries; the one that was not used for the longest first."""
        paths = (path for path in self._paths() if _ENTRY.fullmatch(path.name) and path.is_dir())
        found = map(_look, paths)
        return sorted(filter(None, found), key=lambda entry: entry.used_at)

    def sweep_if_due(self) -> None:
        """Sweep, if nobody did within the last hour."""
        mark = self._folder / _SWEPT
        with suppress(OSError):  # nobody can write there, and so nothing comes to it
            if mark.exists() and time.time() - mark.stat().st_mtime < _SWEEP_SECONDS:
                return
            mark.touch()
            self.sweep()

    def sweep(self, limits: CacheLimits | None = None) -> list[CachedEntry]:
        """Remove what is beyond the limits and not in use, and what nobody will use again.

        Args:
            limits: Others than the cache's own.

        Returns:
            The entries that were removed.
        """
        limits = limits or self._limits
        self._remove_leavings()
        entries = self.entries()
        total = sum(entry.num_bytes for entry in entries)
        removed = []
        for entry in entries:
            is_old = time.time() - entry.used_at > limits.max_age_seconds
            if (is_old or total > limits.max_bytes) and evict(entry.path):
                total -= entry.num_bytes
                removed.append(entry)
                log.info(
                    "cache_entry_removed",
                    kind=entry.kind,
                    entry=entry.digest,
                    bytes=entry.num_bytes,
                    reason="age" if is_old else "size",
                )
        return removed

    def _remove_leavings(self) -> None:
        for path in self._paths():
            if (match := _LEFT.fullmatch(path.name)) is not None:
                if match[1] == "removed":
                    _remove_aside(path)
                elif is_abandoned(path):
                    with suppress(OSError):  # another user's
                        durable.remove(path)
            elif _LOCK.fullmatch(path.name):
                _remove_idle_lock(path)

    def _paths(self) -> Iterator[Path]:
        """All that lies where entries do."""
        for kind in _listed(self._folder):
            if kind.is_dir() and not kind.is_symlink():
                yield from _listed(kind)


def evict(path: Path) -> bool:
    """Remove an entry, unless it is in use; whether it was removed."""
    with suppress(OSError), _unused(path) as is_unused:
        if is_unused:
            durable.remove(_renamed(path))
            return True
    return False


def put_aside(path: Path) -> None:
    """Have nobody open a damaged entry any more; its files go when nobody uses them.

    Raises:
        EntryInUseError: It is one that grows, and is used: who writes there would go on to.
        OSError: It is another user's, or on a disk that is only read.
    """
    if path.parent.name not in GROWING:
        _remove_aside(_renamed(path))
    elif not evict(path) and path.exists():
        raise EntryInUseError(errno.EBUSY, "damaged, and in use or not ours to remove", str(path))


def renounce(entry: Entry) -> None:
    """Leave an entry that grows, and have nobody begin to use it any more; it goes when unused.

    Raises:
        OSError: It stays as it is: it is another user's, or its disk takes no more.
    """
    entry.leave()
    with suppress(FileNotFoundError):  # somebody was quicker
        try:
            put_aside(entry.path)
        except EntryInUseError:
            mark_faulty(entry.path)


def is_abandoned(draft: Path) -> bool:
    """Whether the process that made a draft is gone, as far as can be told from here."""
    try:
        builder = ProcessIdentity.parse((draft / MANIFEST).read_text())
    except (OSError, ValueError):
        return _was_left(draft)
    life = builder.life()
    return life is Life.DEAD or (life is Life.UNKNOWN and _was_left(draft))


def _renamed(path: Path) -> Path:
    return path.rename(path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.removed"))


def _remove_aside(path: Path) -> None:
    with suppress(OSError), _unused(path) as is_unused:
        if is_unused:
            durable.remove(path)


def _remove_idle_lock(path: Path) -> None:
    with suppress(OSError):
        lock = lock_file(path)
        if lock is not None:
            with lock:
                path.unlink()


@contextmanager
def _unused(folder: Path) -> Iterator[bool]:
    """Whether nobody uses an entry; nobody begins to, meanwhile."""
    lock: FileLock | None = None
    try:
        lock = lock_file(folder / MANIFEST)
        is_unused = lock is not None
    except FileNotFoundError:  # nobody can begin to
        is_unused = True
    except LocksMissingError:
        is_unused = _was_left(folder)
    except OSError:  # another user's, or on a disk that is only read: not ours to remove
        is_unused = False
    try:
        yield is_unused
    finally:
        if lock is not None:
            lock.release()


def _was_left(folder: Path) -> bool:
    """Whether nothing in a folder was written, or noted as used, for a long time."""
    with suppress(OSError):
        times = [path.stat().st_mtime for path in (folder, *folder.rglob("*"))]
        return time.time() - max(times) > _UNKNOWN_SECONDS
    return False


def _look(path: Path) -> CachedEntry | None:
    """An entry as it lies there; None if it goes meanwhile."""
    try:
        try:
            manifest = read_manifest(path)
            is_growing = path.parent.name in GROWING
            num_bytes = _size_of(path) if is_growing else manifest.num_bytes
            facts = num_bytes, manifest.built_at, manifest.about
            used_at = (path / MANIFEST).stat().st_mtime
        except DamagedEntryError as error:
            used_at = path.stat().st_mtime
            facts = _size_of(path), used_at, {"damaged": str(error)}
        with _unused(path) as is_unused:
            return CachedEntry(path, path.parent.name, *facts, used_at, not is_unused)
    except OSError:
        return None


def _size_of(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a draft of who writes there now
            total += path.stat().st_size
    return total


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # not made yet, or removed just now
        return []
