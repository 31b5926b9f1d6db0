"""`FLEET_STORE`: a store that is no shared disk, in which folders lie whole or not at all.

Layout: `<root>/<key>/files/...` and, written last and removed first, `<root>/<key>/manifest.json`,
which names the files and their sizes. A key is never written with two contents: it names the
attempt's token.

Invariant: what has no manifest is not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from workers.disk import durable
from workers.passwords import hide
from workers.protocol.errors import FleetError, InvalidInputError
from workers.protocol.plain import describe_error
from workers.settings import Settings

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
        options: dict[str, Any] = {"auto_mkdir": True}
        if urlsplit(url).scheme == "s3":
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

    def put(self, key: str, folder: Path) -> None:
        """Have a folder in the store, as it is now; what was left of an earlier try goes.

        Raises:
            FileNotFoundError: The folder, or a file in it, is not there any more.
            StoreAwayError: The store does not take it; nothing is there, or what was before.
        """
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        if not folder.is_dir():
            raise FileNotFoundError(folder)
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}
        with self._reached():
            for name in sizes:
                if not (folder / name).is_file():
                    raise FileNotFoundError(folder / name)
                self._files.put_file(str(folder / name), self._at(key, _FILES, name))
            content = json.dumps({"files": sizes}).encode()
            self._files.pipe_file(self._at(key, _MANIFEST), content)
            for path in self._listed(self._at(key, _FILES)):
                if path.removeprefix(self._at(key, _FILES) + "/") not in sizes:
                    self._files.rm_file(path)

    def get(self, key: str, folder: Path) -> bool:
        """Have what lies under a key on disk, whole; False if it is not there.

        Raises:
            StoreAwayError: The store does not give it.
            OSError: The disk takes no more.
        """
        with self._reached():
            try:
                sizes: Mapping[str, int] = json.loads(
                    self._files.cat_file(self._at(key, _MANIFEST))
                )["files"]
            except FileNotFoundError:
                return False

        def fill(draft: Path) -> None:
            draft.mkdir()
            for name, size in sizes.items():
                path = draft / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with self._reached():
                    self._files.get_file(self._at(key, _FILES, name), str(path))
                if path.stat().st_size != size:
                    raise StoreAwayError(f"{self._url}: {key}/{name} has not the size it had")

        durable.make_whole(folder, fill)
        return True

    def keys(self, prefix: str) -> list[str]:
        """The keys of all that lies, whole, below a prefix.

        Raises:
            StoreAwayError: The store does not answer.
        """
        with self._reached():
            paths = self._listed(self._at(prefix))
        return sorted(
            path.removeprefix(f"{self._root}/").removesuffix(f"/{_MANIFEST}")
            for path in paths
            if path.endswith(f"/{_MANIFEST}") and f"/{_FILES}/" not in path
        )

    def remove(self, prefix: str) -> None:
        """Remove all that lies below a prefix; each whole thing vanishes in one step.

        Raises:
            StoreAwayError: The store does not do it.
        """
        with self._reached():
            paths = self._listed(self._at(prefix))
            manifests = [path for path in paths if path.endswith(f"/{_MANIFEST}")]
            for path in [*manifests, *(path for path in paths if path not in manifests)]:
                self._files.rm_file(path)

    def _at(self, *parts: str) -> str:
        return "/".join([self._root, *parts])

    def _listed(self, path: str) -> list[str]:
        try:
            return [str(found) for found in self._files.find(path)]
        except FileNotFoundError:
            return []

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Make one error of the many that stores raise; a file that is gone stays what it is."""
        try:
            yield
        except (FileNotFoundError, StoreAwayError):
            raise
        except Exception as error:
            text = hide(describe_error(error, 300))
            raise StoreAwayError(f"FLEET_STORE={self._url}: {text}") from error
