"""The cleanup lease of a host: of all workers on it, one cleans at a time.

Invariant: cleaning is safe without it, since only dead tokens are reaped and only dead sessions
killed; the lease spares the others the work.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from workers.coordination import keys
from workers.coordination.identity import ProcessIdentity
from workers.coordination.scripts import Value, call


class CleanupLease:
    """The right of one process to clean its host."""

    def __init__(self, client: redis.Redis, owner: ProcessIdentity, lease_seconds: float) -> None:
        self._client = client
        self._owner = owner
        self._ttl_ms = int(lease_seconds * 1000)
        # of the processes that it may judge: another container's, or user's, are not among them
        place = f"{owner.host}:{owner.boot_id}:{os.getuid()}"
        self._keys = {"epoch": keys.EPOCH, "cleanup": keys.cleanup(place)}

    @contextmanager
    def held(self) -> Iterator[int | None]:
        """The token if this process cleans now, else None; given back at the block's end."""
        token = self.acquire()
        try:
            yield token
        finally:
            if token is not None:
                self.done(token)

    def acquire(self) -> int | None:
        """The token of the cleaner; None while another process cleans."""
        arguments: dict[str, Value] = {"owner": str(self._owner), "ttl_ms": self._ttl_ms}
        status, *rest = call(self._client, "cleanup_acquire", self._keys, arguments)
        return int(rest[0]) if status == "OK" else None

    def renew(self, token: int) -> bool:
        """Keep the lease; False if it is lost."""
        arguments = {"token": token, "ttl_ms": self._ttl_ms}
        return call(self._client, "cleanup_renew", self._keys, arguments)[0] == "OK"

    def done(self, token: int) -> bool:
        """Give the lease back; False if it was lost."""
        return call(self._client, "cleanup_done", self._keys, {"token": token})[0] == "OK"
