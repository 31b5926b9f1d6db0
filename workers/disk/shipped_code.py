"""The code that studies ship, unpacked in the cache: once a digest, for all processes of a host.

Invariant: a folder that `open_package` returns holds the files of its package, to the bit, and is
kept, where it is, while its entry is. What others wrote beside them (compiled modules, of a worker
that may write everywhere) is left to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from workers.disk.cache import Cache
from workers.disk.cache_entry import DamagedEntryError, Entry, read_manifest
from workers.disk.cache_sweep import CacheLimits, evict
from workers.logs import get_logger
from workers.protocol.errors import PackageError
from workers.protocol.packages import Package, PackedFile, pack, unpack

log = get_logger(__name__)

_KIND: Final = "code"

#: The folder of an entry that holds the files, and nothing that the cache wrote.
_FILES: Final = "files"

#: Where a package whose files were altered is unpacked again: under so many names.
_MOST_COPIES: Final = 8

#: Nobody is to edit what is checked by its sum; to remove it takes no right to write to a file.
_FOLDER_MODE: Final = 0o555
_FILE_MODES: Final = {False: 0o444, True: 0o555}


def open_cache(folder: Path, limits: CacheLimits) -> Cache:
    """The cache as packages lie in it: `open_package` looks at their own files alone."""
    return Cache(folder, limits, checks=False)


def folder_of(entry: Entry) -> Path:
    """Where the files of an entry lie."""
    return entry.path / _FILES


def open_package(cache: Cache, digest: str, fetch: Callable[[], Package], max_bytes: int) -> Entry:
    """The files of a package, unpacked by the first who asks, and checked against its digest.

    Args:
        cache: Where they lie, of `open_cache`.
        digest: The package's.
        fetch: Gets the package, where it is not unpacked here.
        max_bytes: What its files together may have.

    Raises:
        PackageError: It cannot be had, or is none.
        OSError: The disk takes no more.
    """

    def build(draft: Path) -> Mapping[str, Any]:
        files = unpack(fetch(), max_bytes)
        write_files(draft / _FILES, files)
        return {"package": digest, "files": len(files)}

    altered: list[Path] = []
    for number in range(_MOST_COPIES):
        copy = {"copy": number} if number else {}
        entry = cache.get(_KIND, {"sha256": digest, **copy}, build)
        if _digest_of(entry) == digest:
            for path in altered:
                evict(path)  # unless a trial runs there
            return entry
        log.warning(
            "shipped_code_altered",
            package=digest,
            folder=str(entry.path),
            hint="it is unpacked elsewhere",
        )
        altered.append(entry.path)
        entry.leave()
    raise PackageError(
        f"package {digest[:12]}: all its copies were altered, such as {altered[0]}: remove them,"
        " and see who writes there"
    )


def write_files(folder: Path, files: Mapping[str, PackedFile]) -> None:
    """Write the files of a package into a new folder, so that nobody can write to them.

    Raises:
        OSError: The disk takes no more.
    """
    folder.mkdir()
    for name, file in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
        path.chmod(_FILE_MODES[file.is_executable])
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(_FOLDER_MODE)


def _digest_of(entry: Entry) -> str | None:
    """The digest of the files that a package brought; None if they make no package any more."""
    folder = folder_of(entry)
    try:
        own = [entry.path / name for name in read_manifest(entry.path).files]
        return pack(
            {
                path.relative_to(folder).as_posix(): PackedFile(
                    path.read_bytes(), bool(path.stat().st_mode & 0o100)
                )
                for path in own
            }
        ).digest
    except (OSError, ValueError, DamagedEntryError, PackageError):
        return None
