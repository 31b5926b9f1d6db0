"""Keeps this run of the tests apart from others on the host: its own /tmp, /dev/shm and caches.

What is left behind is looked for there; of another run's, none of it is ours to judge.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_CLONE_NEWNS: Final = 0x00020000
_MS_REC_PRIVATE: Final = 0x4000 | (1 << 18)


@contextmanager
def isolated(worker: str | None = None) -> Iterator[None]:
    """Give this process, and all it starts, temporary files, shared memory, caches of its own.

    Args:
        worker: Of a run of several processes, the name of this one.
    """
    _mount_own_shared_memory()
    before = {name: os.environ.get(name) for name in ("TMPDIR", "XDG_CACHE_HOME")}
    if worker is None:
        folder = Path(tempfile.mkdtemp(prefix="t-"))  # short: sockets are made below it
    else:
        folder = Path(tempfile.gettempdir()) / worker
        folder.mkdir()
    os.environ["TMPDIR"] = str(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    os.environ["FLEET_GPU_LOCKS"] = str(folder / "gpus")
    tempfile.tempdir = None
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value
        tempfile.tempdir = None
        del os.environ["FLEET_GPU_LOCKS"]
        shutil.rmtree(folder, ignore_errors=True)


def _mount_own_shared_memory() -> None:
    """Mount an empty /dev/shm in a mount namespace of this process's own; only root may."""
    if os.getuid() != 0 or not hasattr(os, "pidfd_open"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) == 0:
        libc.mount(None, b"/", None, _MS_REC_PRIVATE, None)
        libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"mode=1777")
