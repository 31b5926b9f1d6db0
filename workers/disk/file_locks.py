"""Locks on files: held until they are released or their process ends, however it ends.

Invariant: who holds the lock of a path holds that of the file which lies there, not of one that was
removed or replaced meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from pathlib import Path
from typing import Final, Self

#: What file systems answer that have no locks.
_NO_LOCKS: Final = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class LocksMissingError(OSError):
    """This file system has no locks."""


class FileLock:
    """A lock that is held; released by `release`, by being dropped, and by the process's end."""

    def __init__(self, descriptor: int) -> None:
        self._release = weakref.finalize(self, os.close, descriptor)

    def release(self) -> None:
        """Let go of it; safe to call twice."""
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def lock_file(path: Path, *, shared: bool = False, create: bool = False) -> FileLock | None:
    """Lock a file now, or not at all.

    Args:
        path: The file. Over NFS, a lock that is not shared needs the right to write it.
        shared: With others who do so, and against who does not.
        create: Make an empty file where there is none.

    Returns:
        The lock; None while somebody else has it.

    Raises:
        FileNotFoundError: There is no such file (any more).
        LocksMissingError: Nobody can lock it.
        OSError: It cannot be opened.
    """
    flags = (os.O_RDONLY if shared else os.O_RDWR) | (os.O_CREAT if create else 0)
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise FileNotFoundError(errno.ENOENT, "replaced while it was locked", str(path))
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        if error.errno in _NO_LOCKS:
            raise LocksMissingError(error.errno, os.strerror(error.errno), str(path)) from error
        raise
    return FileLock(descriptor)
