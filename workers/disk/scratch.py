"""Scratch directories: where all of a user's lie on a host, and how one is removed safely.

A scratch directory is named after the process that owns it,
`<host><kernel><pid namespace>-<pid>-<start ticks>-<random>`, and its owner holds a lock on it: who
finds one can tell whose it is and whether it is in use, also where several hosts or containers
share the root.

Invariant: only directories of this naming, directly below the root, of an owner that is gone, are
ever removed; no link is followed.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

from workers.coordination.identity import (
    ProcessIdentity,
    boot_id,
    hostname,
    kernel_id,
    tag,
)
from workers.logs import get_logger
from workers.protocol.errors import InvalidInputError

log = get_logger(__name__)


#: Tells the processes below one whose temporary files go elsewhere where the root is.
_ROOT_VARIABLE: Final = "FLEET_SCRATCH_ROOT"

_NAME: Final = re.compile(
    r"(?P<host>[0-9a-f]{6})(?P<kernel>[0-9a-f]{6})(?P<domain>[0-9a-f]{6})"
    r"-(?P<pid>[0-9]{1,10})-(?P<ticks>[0-9]{1,20})-[0-9a-f]{8}"
)

#: Where sockets go if the root's path is longer than this: a socket's has 107 bytes, of which a
#: directory of ours and what multiprocessing makes in it (`/pymp-.../listener-...`) take 80.
_LONGEST_ROOT: Final = 107 - 80
_SHORT_ROOT: Final = Path("/tmp") / f"trialfleet-{os.getuid()}"  # noqa: S108 - one that TMPDIR is not

#: How long an unlocked directory of another container of this kernel is left: its owner makes it
#: an instant before it locks it.
_UNLOCKED_SECONDS: Final = 600.0

#: File systems that no other kernel can have mounted: whoever uses a directory holds its lock here.
_OF_ONE_KERNEL: Final = {"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"}

#: The locks on this process's own directories, held until they are removed or it ends.
_locks: Final[dict[Path, int]] = {}


def scratch_root() -> Path:
    """The parent of all scratch directories of this user."""
    given = os.environ.get(_ROOT_VARIABLE)
    return Path(given or Path(tempfile.gettempdir()) / f"trialfleet-{os.getuid()}")


def _socket_root() -> Path:
    """Where directories for sockets go: below the root, unless its path is too long for them."""
    root = scratch_root()
    return root if len(os.fsencode(root)) <= _LONGEST_ROOT else _SHORT_ROOT


def _roots() -> list[Path]:
    return list(dict.fromkeys([scratch_root(), _socket_root()]))


def is_too_long_for_sockets(directory: Path) -> bool:
    """Whether what multiprocessing makes in a scratch directory has too long a path to be bound."""
    return directory.parent != _socket_root()


def redirect_temporary_files(directory: Path) -> Callable[[], None]:
    """Have this process, and all that it starts, make their temporary files in a directory.

    Libraries make some, and remove them only on an exit that a pool process never sees.

    Returns:
        What undoes it.
    """
    before = {name: os.environ.get(name) for name in (_ROOT_VARIABLE, "TMPDIR")}

    def restore() -> None:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        tempfile.tempdir = None  # to be found out anew

    os.environ[_ROOT_VARIABLE] = str(scratch_root())
    os.environ["TMPDIR"] = str(directory)
    tempfile.tempdir = None
    return restore


def name_scratch(owner: ProcessIdentity, *, for_sockets: bool = False) -> Path:
    """A new name for a scratch directory of `owner`; nothing is made yet."""
    domain = tag(owner.host) + tag(kernel_id()) + tag(owner.boot_id)
    name = f"{domain}-{owner.pid}-{owner.start_ticks}-{uuid.uuid4().hex[:8]}"
    return (_socket_root() if for_sockets else scratch_root()) / name


def make_scratch(directory: Path) -> None:
    """Make a scratch directory that only this user can read, and hold a lock on it.

    Raises:
        InvalidInputError: The root is a link, or another user's.
        OSError: The disk takes no more.
    """
    _make_root(directory.parent)
    directory.mkdir(mode=0o700)
    with suppress(OSError):  # some network file systems lock no directory
        _locks[directory] = _lock(directory)


def remove_scratch(directory: Path, owner: ProcessIdentity) -> bool:
    """Remove a scratch directory of a process; of a link, only the link itself.

    Args:
        directory: What is none of that process's scratch directories is refused.
        owner: Itself, or one that is known to be dead.

    Returns:
        Whether nothing of it is left that may be removed.
    """
    if not is_scratch_of(directory, owner):
        log.warning("scratch_refused", directory=str(directory), owner=str(owner))
        return True
    return _remove(directory)


def is_scratch_of(directory: Path, owner: ProcessIdentity) -> bool:
    """Whether a directory is, by its name and its place, one of a process's."""
    match = _match(directory)
    of_owner = (str(owner.pid), str(owner.start_ticks), _tags(owner))
    return match is not None and _owner(match) == of_owner


def remove_stale_scratch() -> list[Path]:
    """Remove what processes of this user that no longer run have left; what it was."""
    stale = []
    for path in sorted(path for root in _roots() if root.is_dir() for path in root.iterdir()):
        match = _match(path)
        if match is not None and _is_abandoned(path, match):
            _remove(path)
            stale.append(path)
    return stale


def _make_root(root: Path) -> None:
    with suppress(FileExistsError):
        root.mkdir(mode=0o700, parents=True)
    status = root.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        kind = "directory" if stat.S_ISDIR(status.st_mode) else "link or file"
        raise InvalidInputError(
            f"{root}, where this user's scratch directories are to lie, is a {kind} of user"
            f" {status.st_uid}, not a directory of user {os.getuid()}: have it removed, or set"
            " TMPDIR to another directory on local disk"
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        root.chmod(0o700)


def _match(directory: Path) -> re.Match[str] | None:
    """A directory's name, taken apart, if it lies directly below a root of this user's own."""
    root = directory.parent
    if root not in _roots() or root.is_symlink():
        return None
    with suppress(OSError):
        if root.lstat().st_uid != os.getuid():
            return None
    return _NAME.fullmatch(directory.name)


def _owner(match: re.Match[str]) -> tuple[str, str, str]:
    return match["pid"], match["ticks"], match["host"] + match["domain"]


def _tags(owner: ProcessIdentity) -> str:
    return tag(owner.host) + tag(owner.boot_id)


def _is_abandoned(directory: Path, match: re.Match[str]) -> bool:
    """Whether a directory's owner is known to be gone, and nobody holds its lock."""
    if match["host"] + match["domain"] == tag(hostname()) + tag(boot_id()):
        owner = ProcessIdentity(hostname(), boot_id(), int(match["pid"]), int(match["ticks"]))
        return owner.is_dead() and _is_unlocked(directory, if_unknown=True)
    # of another container of this kernel, and of an earlier boot, the lock tells
    made = directory.lstat().st_mtime
    if match["kernel"] == tag(kernel_id()):
        is_over = time.time() - made > _UNLOCKED_SECONDS
    else:
        is_over = match["host"] == tag(hostname()) and made < psutil.boot_time()
    return (
        is_over
        and _file_system(directory.parent) in _OF_ONE_KERNEL
        and _is_unlocked(directory, if_unknown=False)
    )


def _file_system(directory: Path) -> str:
    """The kind of file system that a directory lies on."""
    real = directory.resolve()
    mounted = [
        (len(partition.mountpoint), partition.fstype)
        for partition in psutil.disk_partitions(all=True)
        if real.is_relative_to(partition.mountpoint)
    ]
    return max(mounted)[1] if mounted else ""


def _lock(directory: Path) -> int:
    """Lock a directory for as long as the descriptor that is returned is open."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_unlocked(directory: Path, *, if_unknown: bool) -> bool:
    if directory.is_symlink():
        return if_unknown
    try:
        os.close(_lock(directory))
    except BlockingIOError:
        return False
    except OSError:
        return if_unknown
    return True


def _remove(directory: Path) -> bool:
    if directory.is_symlink():
        log.warning("scratch_is_a_link", directory=str(directory))
        directory.unlink(missing_ok=True)
    else:
        shutil.rmtree(directory, ignore_errors=True)
    lock = _locks.pop(directory, None)
    if lock is not None:
        os.close(lock)
    return not os.path.lexists(directory)
