"""`FLEET_STORE`: a store that is no shared disk, in which folders lie whole or not at all.

Layout: `<root>/<key>/files/...` and, written last and removed first, `<root>/<key>/manifest.json`,
which names the files and their sizes. A key is never written with two contents: it names the
attempt's token. The root itself is never made: one that is missing is not mounted, or mistyped.

Invariant: what has no manifest is not there, nor is what its manifest does not fit; nothing outside
the folder that is asked for is ever written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from workers.disk import durable
from workers.disk.store_layout import is_key
from workers.logs import get_logger
from workers.passwords import hide
from workers.protocol.errors import FleetError, InvalidInputError
from workers.protocol.plain import describe_error
from workers.settings import Settings

log = get_logger(__name__)

_MANIFEST: Final = "manifest.json"
_FILES: Final = "files"

#: How long a store may take to answer, and how often it is asked before it counts as away.
_CONFIG: Final = {
    "connect_timeout": 5,
    "read_timeout": 30,
    "retries": {"max_attempts": 2, "mode": "standard"},
}


class StoreAwayError(FleetError):
    """The store does not do what it is asked for now."""


class _NotWholeError(Exception):
    """What lies under a key is not what was put there."""


class ObjectStore:
    """Folders in a bucket or below a directory, by key.

    Args:
        url: `s3://bucket/prefix` or `file:///path`.
        endpoint: Of an S3 server other than Amazon's; by default as botocore finds it.

    Raises:
        InvalidInputError: What reaches the store is not installed.
    """

    def __init__(self, url: str, endpoint: str | None = None) -> None:
        self._url = url
        self._is_s3 = urlsplit(url).scheme == "s3"
        self._said: set[str] = set()
        options: dict[str, Any] = {"auto_mkdir": True}
        if self._is_s3:
            options = {
                "endpoint_url": endpoint,
                "config_kwargs": _CONFIG,
                "use_listings_cache": False,
                "skip_instance_cache": True,
            }
        try:
            import fsspec  # type: ignore[import-untyped]  # it has no types

            self._files, root = fsspec.core.url_to_fs(url, **options)
        except ImportError as error:
            raise InvalidInputError(
                f"FLEET_STORE={url}: {error}; install `trialfleet[s3]` where workers run"
            ) from error
        self._root = str(root).rstrip("/")

    @classmethod
    def of(cls, settings: Settings) -> ObjectStore | None:
        """The store that some settings name, if they name one."""
        return None if settings.store is None else cls(settings.store, settings.store_endpoint)

    def check(self) -> None:
        """Return if the bucket, or the directory, is there and answers.

        Raises:
            InvalidInputError: There is none.
            StoreAwayError: It does not answer, or not to these credentials.
        """
        with self._reached():
            try:
                if self._is_s3:
                    bucket, _, prefix = self._root.partition("/")
                    self._files.call_s3(
                        "list_objects_v2", Bucket=bucket, Prefix=f"{prefix}/", MaxKeys=1
                    )
                    return
                is_there = self._files.isdir(self._root or "/")
            except FileNotFoundError:
                is_there = False
        if not is_there:
            kind = "bucket" if self._is_s3 else "directory"
            raise InvalidInputError(
                f"FLEET_STORE={self._url}: there is no such {kind}; make it, mount it, or mend the"
                " name"
            )

    def put(self, key: str, folder: Path) -> None:
        """Have a folder in the store, as it is now; what was left of an earlier try goes.

        Raises:
            FileNotFoundError: The folder, or a file in it, is not on this disk any more.
            OSError: A file cannot be read here.
            StoreAwayError: The store does not take it; nothing is there, or what was before.
        """
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        if not folder.is_dir():
            raise FileNotFoundError(folder)
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}
        self._require_root()
        for name in sizes:
            (folder / name).open("rb").close()  # what cannot be read here is no fault of the store
            try:
                with self._reached():
                    self._files.put_file(str(folder / name), self._at(key, _FILES, name))
            except StoreAwayError:
                (folder / name).stat()
                raise
        with self._reached():
            self._place(self._at(key, _MANIFEST), json.dumps({"files": sizes}).encode())
            for path in self._listed(self._at(key, _FILES)):
                if path.removeprefix(self._at(key, _FILES) + "/") not in sizes:
                    self._files.rm_file(path)

    def get(self, key: str, folder: Path) -> bool:
        """Have what lies under a key on disk; False if it is not there, whole, which is said.

        Raises:
            StoreAwayError: The store does not give it.
            OSError: The disk takes no more.
        """
        try:
            with self._reached():
                content = self._files.cat_file(self._at(key, _MANIFEST))
        except StoreAwayError as error:
            self._unless_absent(error)
            return False
        try:
            sizes = _sizes_in(content)
            durable.make_whole(folder, lambda draft: self._fill(draft, key, sizes))
        except _NotWholeError as error:
            if key not in self._said:
                self._said.add(key)
                log.warning("not_whole_in_store", key=key, error=str(error))
            return False
        return True

    def _fill(self, draft: Path, key: str, sizes: dict[str, int]) -> None:
        draft.mkdir()
        for name, size in sizes.items():
            path = draft / name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with self._reached():
                    self._files.get_file(self._at(key, _FILES, name), str(path))
            except StoreAwayError as error:
                self._unless_absent(error)
                raise _NotWholeError(f"{name!r} is missing") from error
            if path.stat().st_size != size:
                raise _NotWholeError(f"{name!r} has not the size that its manifest names")

    def keys(self, prefix: str) -> list[str]:
        """The keys of all that lies below a prefix, with a manifest.

        Raises:
            StoreAwayError: The store does not answer.
        """
        return sorted(filter(is_key, map(_manifest_of, self._below(prefix))))

    def names(self, prefix: str) -> set[str]:
        """What anything that lies below a prefix, whole or not, is called directly below it.

        Raises:
            StoreAwayError: The store does not answer.
        """
        return {path.removeprefix(prefix).partition("/")[0] for path in self._below(prefix)}

    def remove(self, prefix: str) -> None:
        """Remove all that lies below a prefix; each whole thing vanishes in one step.

        Raises:
            StoreAwayError: The store does not do it.
        """
        paths = self._below(prefix)
        with self._reached():
            for path in sorted(paths, key=lambda path: not is_key(_manifest_of(path))):
                self._files.rm_file(self._at(path))
        if not self._is_s3:
            _remove_empty(Path(self._at(prefix)))

    def _below(self, prefix: str) -> list[str]:
        with self._reached():
            found = self._listed(self._at(prefix))
        return [path.removeprefix(f"{self._root}/") for path in found]

    def _at(self, *parts: str) -> str:
        return "/".join([self._root, *parts])

    def _listed(self, path: str) -> list[str]:
        try:
            found = [str(found) for found in self._files.find(path)]
        except FileNotFoundError:
            found = []
        if not found:
            self._require_root()
        return found

    def _place(self, path: str, content: bytes) -> None:
        if self._is_s3:
            self._files.pipe_file(path, content)  # whole, or not at all
        else:
            durable.write_whole(Path(path), content)

    def _require_root(self) -> None:
        """Raise a `StoreAwayError` where the root is not there (any more)."""
        try:
            self.check()
        except InvalidInputError as error:
            raise StoreAwayError(str(error)) from error

    def _unless_absent(self, error: StoreAwayError) -> None:
        """Raise an error, unless the store is there and says that it has no such thing."""
        if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise error
        self._require_root()

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Make one error of the many that stores raise."""
        try:
            yield
        except StoreAwayError:
            raise
        except Exception as error:
            text = hide(describe_error(error, 300))
            raise StoreAwayError(f"FLEET_STORE={self._url}: {text}") from error


def _remove_empty(folder: Path) -> None:
    """Remove a folder with all below it that holds nothing; a bucket has none of these."""
    for path, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):  # there is something in it, or another host was quicker
            Path(path).rmdir()


def _manifest_of(path: str) -> str:
    """The key whose manifest a path is, if it is called like one; else nothing."""
    key = path.removesuffix(f"/{_MANIFEST}")
    return key if key != path else ""


def _sizes_in(content: bytes) -> dict[str, int]:
    """The files that a manifest names, by path below a folder; whoever wrote it is not trusted.

    Raises:
        _NotWholeError: It is no manifest, or names what is no file below a folder.
    """
    try:
        sizes = json.loads(content)["files"]
        pairs = list(sizes.items())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _NotWholeError(f"its manifest is none: {describe_error(error, 200)}") from error
    for name, size in pairs:
        if not _is_below(name) or any(other.startswith(f"{name}/") for other in sizes):
            raise _NotWholeError(f"its manifest names {name[:200]!r}, which is no file below it")
        if type(size) is not int or size < 0:
            raise _NotWholeError(f"its manifest says of {name[:200]!r} the size {str(size)[:80]!r}")
    return dict(pairs)


def _is_below(name: str) -> bool:
    """Whether a name leads to a file below a folder, and nowhere else."""
    parts = name.split("/")
    is_plain = "\\" not in name and "\0" not in name
    return is_plain and not {"", ".", ".."} & set(parts)
