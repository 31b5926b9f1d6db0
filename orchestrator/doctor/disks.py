"""What must not be lost, and what may be built again: the home, the cache and the store.

Invariant: what is written to try a disk is removed again, whatever happens.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestrator.doctor.findings import Finding, error, ok, warning
from orchestrator.views.amounts import size
from workers.disk.file_locks import LocksMissingError, lock_file
from workers.disk.object_store import ObjectStore
from workers.disk.store_layout import result_key
from workers.protocol.errors import FleetError
from workers.settings import Settings

#: Less free than that is worth a line.
_LEAST_FREE: Final = 2 * 2**30

_OTHERS: Final = stat.S_IRWXO


@dataclass(frozen=True)
class FolderFacts:
    """What was seen of a directory of the fleet's."""

    path: Path
    free: int = 2**40
    #: Why nothing can be written there.
    trouble: str | None = None
    has_locks: bool = True
    is_open_to_others: bool = False


@dataclass(frozen=True)
class DiskFacts:
    """What was seen of all."""

    home: FolderFacts
    cache: FolderFacts
    #: `FLEET_STORE`, and why it does not do what it is asked for.
    store: str | None = None
    store_trouble: str | None = None


def look(settings: Settings) -> DiskFacts:
    """See how the disks are."""
    return DiskFacts(
        home=_look_at(settings.home),
        cache=_look_at(settings.cache),
        store=settings.store,
        store_trouble=_try_store(settings),
    )


def home(facts: DiskFacts) -> Finding:
    """Whether the home takes what is written, and locks."""
    return _judge("FLEET_HOME", facts.home)


def home_is_private(facts: DiskFacts) -> Finding:
    """Whether strangers read data, models and journals."""
    if facts.home.is_open_to_others:
        told = f"all users of this host can look into {facts.home.path}"
        return warning("FLEET_HOME's mode", told, f"chmod o-rwx {facts.home.path}")
    return ok("FLEET_HOME's mode", "closed to other users")


def cache(facts: DiskFacts) -> Finding:
    """Whether the cache takes what is written, and locks."""
    return _judge("FLEET_CACHE", facts.cache)


def store(facts: DiskFacts) -> Finding:
    """Whether the store is there and takes what workers bring."""
    if facts.store is None:
        return ok("FLEET_STORE", "none: workers and people share the home's disk")
    if facts.store_trouble is not None:
        fix = f"make {facts.store} writable to this user's credentials, or mend FLEET_STORE"
        return error("FLEET_STORE", facts.store_trouble, fix)
    return ok("FLEET_STORE", f"{facts.store} can be written, read and removed")


CHECKS: Final[tuple[Callable[[DiskFacts], Finding], ...]] = (home, home_is_private, cache, store)


def _judge(name: str, facts: FolderFacts) -> Finding:
    if facts.trouble is not None:
        told = f"{facts.path} cannot be written: {facts.trouble}"
        return error(name, told, f"{name} of a directory that this user may write to")
    if not facts.has_locks:
        told = f"{facts.path} is on a file system without locks"
        fix = f"mount it with locks (NFS without `nolock`), or {name} on a local disk"
        return error(name, told, fix)
    if facts.free < _LEAST_FREE:
        told = f"{facts.path}: {size(facts.free)} free"
        return warning(name, told, f"make room, or {name} on another disk")
    return ok(name, f"{facts.path}: {size(facts.free)} free, locks work")


def _look_at(path: Path) -> FolderFacts:
    """Try a directory; of one that is not there yet, the one that it would be made in."""
    try:
        there = next(each for each in (path, *path.parents) if each.exists())
        is_open = there == path and bool(stat.S_IMODE(path.stat().st_mode) & _OTHERS)
        free = shutil.disk_usage(there).free
        return FolderFacts(path, free=free, has_locks=_has_locks(there), is_open_to_others=is_open)
    except OSError as problem:
        return FolderFacts(path, trouble=problem.strerror or str(problem))


def _has_locks(folder: Path) -> bool:
    """Whether a file there can be locked.

    Raises:
        OSError: None can be written.
    """
    descriptor, name = tempfile.mkstemp(prefix=".doctor-", dir=folder)
    try:
        os.close(descriptor)
        lock = lock_file(Path(name))
        if lock is not None:
            lock.release()
        return True
    except LocksMissingError:
        return False
    finally:
        Path(name).unlink(missing_ok=True)


def _try_store(settings: Settings) -> str | None:
    """Bring something to the store, read it and remove it; why that does not work."""
    key = result_key(f"doctor-{os.getpid()}", None, 0, 1)
    try:
        store = ObjectStore.of(settings)
        if store is None:
            return None
        store.check()
        with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
            brought, fetched = Path(folder) / "brought", Path(folder) / "fetched"
            brought.mkdir()
            (brought / "probe").write_text("probe")
            try:
                store.put(key, brought)
                if not store.get(key, fetched):
                    return f"{settings.store} does not give back what it was brought"
            finally:
                store.remove(key)
    except (FleetError, OSError) as problem:
        return str(problem)
    return None
