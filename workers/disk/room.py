"""Room of a file on its disk: made sure of before it is written to, given back once it was read.

Invariant: the length and the content of what is yet to be read stay as they are.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from typing import Final

#: `fallocate`: what is taken, or given back, does not change the file's length.
_KEEP_SIZE: Final = 0x01
_PUNCH_HOLE: Final = 0x02

#: Not each file system can do it, nor does each kernel.
_NOT_DONE: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def has_room(descriptor: int, length: int) -> bool:
    """Take room for so many bytes after a file's end; whether they can be written now.

    Where nothing can be taken ahead, whether the disk has them free at the moment.
    """
    end = os.fstat(descriptor).st_size
    error = _allocate(descriptor, _KEEP_SIZE, end, length)
    if error not in _NOT_DONE:
        return not error
    disk = os.fstatvfs(descriptor)
    return disk.f_bavail * disk.f_frsize >= length


def give_back(descriptor: int, length: int) -> None:
    """Free the room of the beginning of a file; where that cannot be done, it stays for now."""
    if length:
        _allocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, 0, length)


def _allocate(descriptor: int, mode: int, offset: int, length: int) -> int:
    """Call it; the number of the error that it came to, or 0."""
    if sys.platform != "linux":
        return errno.ENOSYS
    call, size = ctypes.CDLL(None, use_errno=True).fallocate, ctypes.c_longlong
    if call(ctypes.c_int(descriptor), ctypes.c_int(mode), size(offset), size(length)):
        return ctypes.get_errno()
    return 0
