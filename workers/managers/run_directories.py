"""DirectoryManager: run and scratch directories, the cache, and writes that are whole or absent.

Layout of `FLEET_HOME`:

    studies/<study>/trials/<number>/   what a trial leaves: `result/` with metrics and model
    studies/<study>/attempts/          the same of attempts that run, `<number>-<token>/` each
    checkpoints/<study>/<number>/<token>/step-<step>/
    wandb/                             offline W&B runs

Tokenised data, trained tokenizers and compiled models lie in `FLEET_CACHE`
(`workers/disk/cache.py`).

Invariant: a scratch directory is in the process registry before it exists.
"""

from __future__ import annotations

import errno
import multiprocessing
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import redis

from workers.disk import durable
from workers.disk.cache import Build, Cache
from workers.disk.cache_entry import Entry, EntryInUseError, Progress, unwatched
from workers.disk.cache_sweep import CacheLimits
from workers.disk.manifests import checkpoint_root
from workers.disk.results import draft_directory
from workers.disk.scratch import (
    is_too_long_for_sockets,
    make_scratch,
    name_scratch,
    redirect_temporary_files,
    remove_scratch,
)
from workers.logs import get_logger
from workers.managers.base import BaseProcessManager
from workers.processes.registry import ProcessRecord
from workers.protocol.errors import TransientError
from workers.settings import Settings

log = get_logger(__name__)

#: What a disk answers that takes no more, or takes nothing from this user, one that is a share and
#: away, and one on which something else lies where entries do.
_DISK_ERRORS: Final = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
    errno.ESTALE, getattr(errno, "EREMOTEIO", errno.EIO), errno.ETIMEDOUT, errno.EHOSTDOWN,
    errno.ENOTCONN,
    errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP,
}  # fmt: skip


class DirectoryManager(BaseProcessManager):
    """The directories of this process."""

    def __init__(self, settings: Settings, record: ProcessRecord) -> None:
        super().__init__()
        self.home = settings.home
        self._record = record
        self._limits = CacheLimits(settings.cache_size, settings.cache_age)
        self._cache = Cache(settings.cache, self._limits)
        #: where the other one cannot be written
        self._own_cache: Cache | None = None
        self._scratch: Path | None = None
        self._sockets: Path | None = None
        self._restore_temporary_files: Callable[[], None] = lambda: None

    def open(self) -> None:
        """In a fleet, have all temporary files of this process made in its scratch directory."""
        if self._record.is_registered:
            self._restore_temporary_files = redirect_temporary_files(self.scratch())
            if is_too_long_for_sockets(self.scratch()):
                self._sockets = self._make_registered(for_sockets=True)
                # loaders take it over from here
                _process_config()["tempdir"] = str(self._sockets)

    def close(self) -> None:
        """Remove this process's scratch directory."""
        self._restore_temporary_files()
        if self._sockets is not None:
            _process_config().pop("tempdir", None)
        for directory in filter(None, (self._sockets, self._scratch)):
            remove_scratch(directory, self._record.identity)
            with suppress(redis.RedisError):  # the record expires by itself
                self._record.drop_scratch(directory)
        self._scratch = self._sockets = None

    @property
    def checkpoints(self) -> Path:
        """The root of all checkpoints; on a file system that the fleet's hosts share, if any."""
        return checkpoint_root(self.home)

    def draft_directory(self, study: str, number: int, token: int) -> Path:
        """Where an attempt leaves its files, published if it is accepted; not made by this call."""
        return draft_directory(self.home, study, number, token)

    def scratch(self) -> Path:
        """A directory of this process alone, on local disk, removed when the process ends.

        It is registered before it is made, so that the host agent finds it after a crash. In a
        fleet, `tempfile` makes its files there, too.
        """
        if self._scratch is None:
            self._scratch = self._make_registered()
        return self._scratch

    def _make_registered(self, *, for_sockets: bool = False) -> Path:
        directory = name_scratch(self._record.identity, for_sockets=for_sockets)
        self._record.add_scratch(directory)
        make_scratch(directory)
        return directory

    def atomic_write(self, path: Path, content: str | bytes) -> None:
        """Write a file that readers see whole or not at all, and that is on disk on return."""
        durable.write_whole(path, content)

    def cached(
        self, kind: str, key: Mapping[str, Any], build: Build, progress: Progress = unwatched
    ) -> Entry:
        """An entry of the cache, built by the first process that asks for it.

        Where the cache cannot be written, or a damaged entry is in use by others, this process
        builds a copy of its own, which goes with it.

        Args:
            kind: The cache's name, such as `data`.
            key: All that the content follows from.
            build: Fills an empty directory, and returns what people are told of it. Others wait
                meanwhile, and see all of it or nothing.
            progress: Told of waiting and checking; what it raises ends both.

        Raises:
            TransientError: No disk takes it.
        """
        try:
            return self._cache.get(kind, key, build, progress)
        except OSError as error:
            if error.errno not in _DISK_ERRORS and not isinstance(error, EntryInUseError):
                raise
            log.warning(
                "cache_not_written",
                folder=str(self._cache.folder),
                error=str(error),
                hint=_way_out(error),
            )
            return self._cached_here(kind, key, build, progress, error)

    def _cached_here(
        self,
        kind: str,
        key: Mapping[str, Any],
        build: Build,
        progress: Progress,
        reason: OSError,
    ) -> Entry:
        try:
            if self._own_cache is None:
                self._own_cache = Cache(self.scratch() / "cache", self._limits)
            return self._own_cache.get(kind, key, build, progress)
        except OSError as error:
            raise TransientError(
                f"{kind} can be kept neither in FLEET_CACHE = {self._cache.folder} ({reason}) nor"
                f" in {tempfile.gettempdir()} ({error}); make room, or set FLEET_CACHE to another"
                " disk"
            ) from error


def _way_out(error: OSError) -> str:
    if isinstance(error, EntryInUseError):
        return "it is built anew once nobody uses it; meanwhile each process builds one of its own"
    return (
        "make room there, or set FLEET_CACHE to another disk; meanwhile each process builds a copy"
        " of its own"
    )


def _process_config() -> dict[str, Any]:
    """What multiprocessing knows of this process, and hands on to those that it starts."""
    process: Any = multiprocessing.current_process()
    config: dict[str, Any] = process._config
    return config
