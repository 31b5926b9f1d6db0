"""Where compiled code is kept: in an entry of the cache for all who compile alike, held while used.

torch reads and writes there for as long as a training goes on.

Invariant: code that another process uses stays where it is, and what may be damaged is run by
nobody who comes after.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from workers.disk import durable
from workers.disk.cache_entry import MANIFEST
from workers.disk.cache_sweep import renounce
from workers.managers.run_directories import DirectoryManager

#: The kind of its entries in the cache.
KIND: Final = "compiled"


class CompiledCode:
    """The code of one model, held until it is left.

    Args:
        directories: Have the cache.
        key: All that the code follows from.
        about: What people are told of it.
    """

    def __init__(
        self, directories: DirectoryManager, key: Mapping[str, Any], about: Mapping[str, Any]
    ) -> None:
        self._entry = directories.cached(KIND, key, lambda _: about)
        self._is_shared = _is_own(self._entry.path)
        #: where torch finds it, and leaves more
        self.folder = self._entry.path if self._is_shared else directories.scratch() / KIND
        self.folder.mkdir(exist_ok=True)
        self._was_there = any(
            path.name[0] != "." and path.name != MANIFEST for path in self.folder.iterdir()
        )

    @property
    def cache(self) -> Path:
        """The cache that it lies in."""
        return self._entry.path.parents[1]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have torch and Triton keep what they build there.

        They compile in this process: others of theirs would outlive the trial.
        """
        import torch._inductor.config as inductor

        places = {
            "TORCHINDUCTOR_CACHE_DIR": self.folder,
            "TRITON_CACHE_DIR": self.folder / "triton",
        }
        before = {name: os.environ.get(name) for name in places}
        os.environ.update({name: str(place) for name, place in places.items()})
        try:
            with inductor.patch(compile_threads=1):
                yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def bring_to_disk(self) -> None:
        """Bring it there: what a power cut left in halves would be loaded by all that follow."""
        with suppress(OSError):  # another process's draft that is gone by now, or a full disk
            durable.sync_tree(self.folder)

    def renounce(self) -> bool:
        """Leave it, and have nobody take it any more; it goes as soon as nobody uses it.

        Returns:
            Whether that is so, and there was some before this training.
        """
        if not self._is_shared:
            shutil.rmtree(self.folder, ignore_errors=True)
            return self._was_there
        try:
            renounce(self._entry)
        except OSError:  # a disk that takes no more
            return False
        return self._was_there

    def leave(self) -> None:
        """Use it no more."""
        self._entry.leave()


def _is_own(folder: Path) -> bool:
    """Whether nobody but this user may write there: what is read from it is run.

    torch writes where it reads, so that it is no use to take from others either.
    """
    status = folder.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022
