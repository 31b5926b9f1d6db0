"""DirectoryManager: run, cache and scratch directories, and writes that are whole or absent.

Layout of `FLEET_HOME`:

    studies/<study>/trials/<number>/   what a trial leaves: `result/` with metrics and model
    studies/<study>/attempts/          the same of attempts that run, `<number>-<token>/` each
    checkpoints/<study>/<number>/<token>/step-<step>/
    cache/<kind>/<digest>/             tokenised data and trained tokenizers, shared by a host
    wandb/                             offline W&B runs

Invariant: a scratch directory is in the process registry before it exists.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis
from filelock import FileLock

from workers.disk import durable
from workers.disk.manifests import checkpoint_root
from workers.disk.results import draft_directory
from workers.disk.scratch import (
    is_too_long_for_sockets,
    make_scratch,
    name_scratch,
    redirect_temporary_files,
    remove_scratch,
)
from workers.managers.base import BaseProcessManager
from workers.processes.registry import ProcessRecord
from workers.settings import Settings


class DirectoryManager(BaseProcessManager):
    """The directories of this process."""

    def __init__(self, settings: Settings, record: ProcessRecord) -> None:
        super().__init__()
        self.home = settings.home
        self._record = record
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

    def cached(self, kind: str, digest: str, build: Callable[[Path], None]) -> Path:
        """A directory of the host's cache, built by the first process that asks for it.

        Args:
            kind: The cache's name, such as `data`.
            digest: Names the content; equal digests hold equal files.
            build: Fills an empty directory. Others wait meanwhile, and see all of it or nothing.
        """

        def fill(draft: Path) -> None:
            draft.mkdir()
            build(draft)

        final = self.home / "cache" / kind / digest
        if final.exists():
            return final
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(final.with_name(f".{digest}.lock")):
            if not final.exists():
                for left in durable.drafts_of(final):  # by a process that died while building
                    durable.remove(left)
                durable.make_whole(final, fill)
        return final


def _process_config() -> dict[str, Any]:
    """What multiprocessing knows of this process, and hands on to those that it starts."""
    process: Any = multiprocessing.current_process()
    config: dict[str, Any] = process._config
    return config
