"""What it takes for a file or a folder to be on disk, whole, when a call returns.

Invariant: whoever looks sees what was there before or all of what is new, also after a power cut
(of what `place_whole` made, once it was brought to disk).
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

#: Why one file cannot have two names: on two file systems, on one that has no such names, too many.
_NO_LINKS: Final = {
    errno.EXDEV, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK,
}  # fmt: skip


def make_whole(path: Path, fill: Callable[[Path], None]) -> None:
    """Make a file or a folder under another name, bring it to disk, and put it in its place.

    Args:
        path: Where it is to be; what is there is replaced. Its folder is made if need be.
        fill: Makes the file or the folder at the path that it is given, beside `path`.

    Raises:
        OSError: The disk takes no more; what was there before still is, and nothing else.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    try:
        fill(draft)
        sync_tree(draft)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)  # a folder is not replaced by a rename
        draft.replace(path)
    except BaseException:
        remove(draft)
        raise
    sync(path.parent)


def make_once(path: Path, fill: Callable[[Path], None]) -> bool:
    """Make a folder whole, unless there is one by then: whoever was first stays.

    Args:
        path: Where it is to be. Its folder is made if need be.
        fill: Makes the folder at the path that it is given, beside `path`, and writes into it.

    Returns:
        Whether what `fill` made is there now, and not what somebody else did.

    Raises:
        OSError: The disk takes no more; nothing is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    try:
        fill(draft)
        sync_tree(draft)
        try:
            draft.rename(path)
        except OSError as error:
            if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                raise
            remove(draft)
            return False
    except BaseException:
        remove(draft)
        raise
    sync(path.parent)
    return True


def write_whole(path: Path, content: str | bytes, *, mode: int = 0o666) -> None:
    """Make a file with some content, whole and on disk.

    Args:
        path: Where it is to be.
        content: Text is written as UTF-8.
        mode: The file's permissions, less the umask.

    Raises:
        OSError: The disk takes no more; what was there before still is, and nothing else.
    """
    make_whole(path, lambda draft: _write(draft, content, mode))


def write_named(path: Path, content: bytes) -> None:
    """Write what somebody asked for into the file that they named, as a shell's `>` would.

    A link is followed, and a device or a pipe is written to as it is; a file is there whole.

    Args:
        path: Where it is to be. Its folder is made if need be.
        content: What it is to hold.

    Raises:
        OSError: It is a folder, or cannot be written; what was there before still is.
    """
    if path.is_dir():  # which `make_whole` would put the file in the place of
        raise IsADirectoryError(errno.EISDIR, "it is a folder; name a file in it", str(path))
    if path.exists() and not path.is_file():
        path.write_bytes(content)
    else:
        write_whole(path.resolve(), content)


def place_whole(path: Path, content: str | bytes) -> None:
    """Make a file with some content, whole: it outlives this process, and a power cut if synced.

    Args:
        path: Where it is to be, in a folder that is there.
        content: Text is written as UTF-8.

    Raises:
        OSError: The disk takes no more; what was there before still is, and nothing else.
    """
    draft = draft_of(path)
    try:
        _write(draft, content)
        draft.replace(path)
    except BaseException:
        remove(draft)
        raise


def _write(path: Path, content: str | bytes, mode: int = 0o666) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


def link_tree(source: Path, target: Path) -> None:
    """Have a file, or a folder and all that is in it, at another path, too.

    Files are linked where the file system can, and copied where not; a link is followed.

    Raises:
        OSError: It is not there, or the disk takes no more.
    """
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link)
    else:
        _link(source, target)


def copy_tree(source: Path, target: Path) -> None:
    """Have what a file, or a folder and all in it, holds now at another path, on its own.

    A link is followed; in a folder, one to nothing is left out.

    Raises:
        OSError: It is not there, or the disk takes no more.
    """
    if source.is_dir():
        shutil.copytree(source, target, ignore_dangling_symlinks=True)
    else:
        shutil.copy2(source, target)


def _link(source: Path | str, target: Path | str) -> None:
    try:
        os.link(Path(source).resolve(strict=True), target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copy2(source, target)


def draft_of(path: Path) -> Path:
    """A new name beside a path, for what is not whole yet; nothing is made."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.draft")


def drafts_of(path: Path) -> list[Path]:
    """What those that made something at a path, and died meanwhile, have left beside it."""
    return list(path.parent.glob(f".{path.name}.????????.draft"))


def sync_tree(path: Path) -> None:
    """Bring a file, or a folder and all that is in it, to disk."""
    if path.is_dir():
        for child in path.iterdir():
            sync_tree(child)
    sync(path)


def sync(path: Path) -> None:
    """Bring a file's content, or a directory's names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        for folder in [path, *(found for found in path.rglob("*") if _is_own_folder(found))]:
            with suppress(OSError):  # what lies in one that cannot be written to stays there
                folder.chmod(folder.stat().st_mode | 0o700)
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_own_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
