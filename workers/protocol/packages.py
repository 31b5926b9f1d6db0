"""Packages: the files of a study's code as one archive, the same bytes for the same files.

An archive is a tar of plain files, in the order of their names, without owners and times; it
travels compressed. Its digest is that of the tar, which no release of a compressor changes.

Invariant: what `unpack` returns packs to the very bytes that it was given: nothing that a tar can
hold beyond files below one folder (links, devices, holes, names twice) passes.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from workers.protocol.errors import PackageError

#: More files than that are no code.
MAX_FILES: Final = 5000

#: What a tar adds to its files at most: a head and padding each, a long name's own, and its end.
_MAX_OVERHEAD_BYTES: Final = 4096 * (MAX_FILES + 8)

_MODES: Final = {False: 0o644, True: 0o755}


class PackedFile(NamedTuple):
    """A file of a package."""

    content: bytes
    is_executable: bool = False


class Package(NamedTuple):
    """An archive, compressed, and its digest."""

    digest: str
    content: bytes


def pack(files: Mapping[str, PackedFile]) -> Package:
    """The package of some files, by their paths within it.

    Raises:
        PackageError: A path leads out of it, or is one file's and another's folder.
    """
    archive = _tar(files)
    return Package(hashlib.sha256(archive).hexdigest(), zlib.compress(archive, 6))


def unpack(package: Package, max_bytes: int) -> dict[str, PackedFile]:
    """The files of a package, by their paths within it.

    Args:
        package: Whoever made it.
        max_bytes: What all files together may have.

    Raises:
        PackageError: It is none, it is too large, or its digest is not its own.
    """
    archive = _inflate(package.content, max_bytes + _MAX_OVERHEAD_BYTES)
    if hashlib.sha256(archive).hexdigest() != package.digest:
        raise PackageError(f"package {package.digest[:12]}: its content is another one's")
    files = _read(archive, max_bytes)
    if _tar(files) != archive:
        raise PackageError(f"package {package.digest[:12]}: it was not packed by this program")
    return files


def _tar(files: Mapping[str, PackedFile]) -> bytes:
    _check_names(files)
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, file in sorted(files.items()):
            head = tarfile.TarInfo(name)
            head.size, head.mode = len(file.content), _MODES[file.is_executable]
            archive.addfile(head, io.BytesIO(file.content))
    return written.getvalue()


def _inflate(content: bytes, most: int) -> bytes:
    """What was compressed; never more of it in memory than is allowed."""
    stream = zlib.decompressobj()
    try:
        archive = stream.decompress(content, most + 1)
    except zlib.error as error:
        raise PackageError(f"it is no package: {error}") from error
    if len(archive) > most:
        raise PackageError(f"it is larger than {most} bytes")
    if not stream.eof or stream.unused_data:
        raise PackageError("it is no package: it was cut off, or something follows it")
    return archive


def _read(archive: bytes, max_bytes: int) -> dict[str, PackedFile]:
    files: dict[str, PackedFile] = {}
    left = max_bytes
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as opened:
            for member in opened:
                if member.type != tarfile.REGTYPE or member.sparse is not None:
                    raise PackageError(f"{member.name!r} is no plain file")
                if len(files) == MAX_FILES:
                    raise PackageError(f"it has more than {MAX_FILES} files")
                if member.size < 0:
                    raise PackageError(f"{member.name!r} has {member.size} bytes")
                left -= member.size
                if left < 0:
                    raise PackageError(f"its files have more than {max_bytes} bytes")
                reader = opened.extractfile(member)
                content = b"" if reader is None else reader.read()
                files[member.name] = PackedFile(content, bool(member.mode & 0o100))
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise PackageError(f"it is no package: {error}") from error
    return files


def _check_names(names: Mapping[str, object]) -> None:
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    for name in names:
        parts = name.split("/")
        is_plain = all(part not in {"", ".", ".."} and part.isprintable() for part in parts)
        if not is_plain or "\\" in name:
            raise PackageError(f"{name!r} is no path within a package")
        if any(len(part.encode("utf-8", "replace")) > 255 for part in parts) or len(name) > 1000:
            raise PackageError(f"{name[:80]!r}...: no disk takes so long a name")
        if name in folders:
            raise PackageError(f"{name!r} is a file and a folder")
