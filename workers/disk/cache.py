"""The cache of what is built once and used by all: `FLEET_CACHE/<kind>/<digest of its key>/`.

The processes of a host share it, and so may hosts that share the disk. The lock on
`.<digest>.lock` has one build and the others wait; it only saves work. What makes an entry is the
rename of a draft that is on disk: whoever comes second takes what the first one left.

Invariant: nobody sees half an entry, nor uses one that is damaged; none that is in use is removed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, Final

from workers.coordination.identity import ProcessIdentity
from workers.disk import durable
from workers.disk.cache_entry import (
    GROWING,
    MANIFEST,
    DamagedEntryError,
    Entry,
    Progress,
    check,
    check_key,
    digest_of,
    is_faulty,
    lock_for_use,
    seal,
    unwatched,
)
from workers.disk.cache_sweep import CacheLimits, CacheSweep, is_abandoned, put_aside
from workers.disk.file_locks import FileLock, LocksMissingError, lock_file
from workers.logs import get_logger

log = get_logger(__name__)

#: Fills an empty folder, and tells people about what is in it.
Build = Callable[[Path], Mapping[str, Any]]

#: Between two looks whether another process has built what is waited for.
_LOOK_SECONDS: Final = 0.1

_KIND: Final = re.compile(r"[a-z]+")


class Cache:
    """The entries of one folder.

    Args:
        folder: `FLEET_CACHE`.
        limits: What may be kept.
        checks: Whether entries are held against what was built when they are opened; where others
            may write beside their files, whoever opens them has to look.
    """

    def __init__(self, folder: Path, limits: CacheLimits, *, checks: bool = True) -> None:
        self.folder = folder
        self._checks = checks
        self._sweep = CacheSweep(folder, limits)

    def get(
        self, kind: str, key: Mapping[str, Any], build: Build, progress: Progress = unwatched
    ) -> Entry:
        """The entry of a key, checked as `checks` says; built by the first who asks for it.

        Args:
            kind: Small letters, such as `data`.
            key: All that the content follows from, as JSON takes it; no place on any disk.
            build: Fills an empty folder, and returns what people are told of it.
            progress: Told of checking and of waiting; what it raises ends both.

        Raises:
            EntryInUseError: It is damaged, and others use it.
            OSError: The disk takes no more, or nothing can be written there.
        """
        assert _KIND.fullmatch(kind)  # noqa: S101 - a name in the code
        path = self.folder / kind / digest_of(key)
        while True:
            with suppress(DamagedEntryError):  # looked at again by who may build it
                if (entry := self._open(path, progress)) is not None:
                    self._sweep.sweep_if_due()
                    return entry
            with self._lock(path, progress):
                entry = self._open_or_remove(path, progress) or self._build(path, key, build)
            if entry is not None:
                self._sweep.sweep()
                return entry

    def _open(self, path: Path, progress: Progress) -> Entry | None:
        """An entry that is whole, or None where there is none.

        Raises:
            DamagedEntryError: It is not what was built.
        """
        if is_faulty(path):  # first, so that whoever removes it finds it unused
            raise DamagedEntryError("whoever used it found fault with it")
        while True:
            try:
                lock = lock_for_use(path)
                break
            except BlockingIOError:  # for an instant: it is looked at, or about to be gone
                progress("waiting for a cached entry", 0, 0)
                time.sleep(_LOOK_SECONDS)
            except FileNotFoundError:
                if path.is_dir():
                    raise DamagedEntryError(f"{MANIFEST} is missing") from None
                return None
        entry = Entry(path, lock)
        try:
            if self._checks and path.parent.name not in GROWING:
                check(path, path.name, progress)
            else:
                check_key(path, path.name)
        except BaseException:
            entry.leave()  # the traceback would keep it in use
            raise
        entry.note_use()
        return entry

    def _open_or_remove(self, path: Path, progress: Progress) -> Entry | None:
        try:
            return self._open(path, progress)
        except DamagedEntryError as error:
            log.warning(
                "cache_entry_damaged",
                kind=path.parent.name,
                entry=path.name,
                reason=str(error),
                hint="it is built again",
            )
            put_aside(path)
            return None

    def _lock(self, path: Path, progress: Progress) -> AbstractContextManager[object]:
        """The right to build an entry, waited for."""
        file = path.with_name(f".{path.name}.lock")
        started_at = time.monotonic()
        while (lock := self._try_lock(file)) is None:
            waited = time.monotonic() - started_at
            progress("seconds waited for another process that builds", int(waited), 0)
            time.sleep(_LOOK_SECONDS)
        return lock

    def _try_lock(self, file: Path) -> AbstractContextManager[object] | None:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            return lock_file(file, create=True)
        except FileNotFoundError:  # removed just now, as one that nobody needs
            return None
        except LocksMissingError as error:
            log.warning(
                "cache_without_locks",
                folder=str(self.folder),
                error=str(error),
                hint="several processes may build the same; move FLEET_CACHE to a disk with locks",
            )
            return nullcontext()

    def _build(self, path: Path, key: Mapping[str, Any], build: Build) -> Entry | None:
        """Build an entry; None if somebody else, whom no lock kept from it, was quicker."""
        for draft in durable.drafts_of(path):
            if is_abandoned(draft):
                durable.remove(draft)
        lock: FileLock | None = None

        def fill(draft: Path) -> None:
            nonlocal lock
            draft.mkdir()
            # tells others whose it is; with the lock on it, this is an entry in use from the start
            (draft / MANIFEST).write_text(str(ProcessIdentity.current()))
            lock = lock_for_use(draft)
            about = build(draft)
            seal(draft, key, about)

        if not durable.make_once(path, fill):
            return None
        return Entry(path, lock)
