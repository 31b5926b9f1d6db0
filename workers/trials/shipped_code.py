"""Which code that travels this process takes, and where it lies unpacked.

Invariant: nothing of a package is unpacked or imported before it is known that it may be run here:
by a secret of this worker's, for this very study, or by its digest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import redis

from workers.coordination.packages import Packages
from workers.disk.cache_entry import Entry
from workers.disk.cache_sweep import CacheLimits
from workers.disk.shipped_code import folder_of, open_cache, open_package
from workers.logs import get_logger
from workers.protocol.errors import PackageError
from workers.protocol.spec import StudySpec
from workers.settings import SIGNED, Settings

log = get_logger(__name__)

#: How many packages a process keeps from being removed: of the studies that it runs by turns.
_KEPT: Final = 16


class ShippedCode:
    """The packages that this process has opened.

    Args:
        client: The fleet's Redis.
        settings: What is taken, and where it is unpacked.
    """

    def __init__(self, client: redis.Redis, settings: Settings) -> None:
        self._packages = Packages(client, settings.seal)
        self._settings = settings
        limits = CacheLimits(settings.cache_size, settings.cache_age)
        self._cache = open_cache(settings.cache, limits)
        #: by digest; checked when they were opened
        self._opened: dict[str, Entry] = {}
        #: studies with the packages that are known to be signed for them
        self._signed: set[tuple[str, str]] = set()

    def root_of(self, spec: StudySpec) -> Path | None:
        """Where the code that a study ships lies; None if it ships none.

        Raises:
            PackageError: It is not taken here, or there is none.
            UnsealedError: It is not signed for this study.
            OSError: The disk takes no more.
            redis.RedisError: Redis is away.
        """
        digest = spec.code.package
        if digest is None:
            return None
        self._check(spec.name, digest)
        entry = self._still_open(digest) or open_package(
            self._cache,
            digest,
            lambda: self._packages.fetch(spec.name, digest),
            self._settings.code_size,
        )
        self._opened[digest] = entry  # the last one is the one that was used last
        while len(self._opened) > _KEPT:
            self._opened.pop(next(iter(self._opened))).leave()
        return folder_of(entry)

    def _still_open(self, digest: str) -> Entry | None:
        """A package that was opened, unless somebody has removed it since, with the cache."""
        entry = self._opened.pop(digest, None)
        if entry is None or folder_of(entry).is_dir():
            return entry
        entry.leave()
        log.warning("shipped_code_gone", package=digest, hint="it is unpacked again")
        return None

    def _check(self, study: str, digest: str) -> None:
        accepted = self._settings.accept_code
        if digest in accepted or (study, digest) in self._signed:
            return
        if SIGNED not in accepted or not self._settings.seal:
            raise PackageError(
                "this worker takes no code that travels: start it with FLEET_ACCEPT_CODE=signed and"
                " the FLEET_SECRET that the study was handed in with"
            )
        self._packages.check(study, digest)
        self._signed.add((study, digest))
