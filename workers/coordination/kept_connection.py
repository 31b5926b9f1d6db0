"""A connection of who looks again and again: opened and checked once, so that a look costs a look.

Invariant: a server that goes away, or refuses, in the midst of a look is told in the words of
`connect`, and the next look opens anew.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary, finalize

import redis

from workers.coordination.connection import (
    connect,
    is_general,
    lacking,
    resolve_url,
    unavailable,
)
from workers.coordination.rights import Role
from workers.protocol.errors import FleetError
from workers.settings import Settings

_Key = tuple[str | None, Path, Role]

#: Those that somebody has: all who look at one server as one role look through one connection.
_SHARED: Final[WeakValueDictionary[_Key, KeptConnection]] = WeakValueDictionary()
_SHARING = threading.Lock()


class KeptConnection:
    """A client of the fleet's Redis that is opened at its first use; threads may share it.

    It is closed when nobody has it any more.

    Args:
        settings: Name the server. An embedded one that began anew elsewhere is followed there.
        role: What this process is to the fleet.
    """

    def __init__(self, settings: Settings, role: Role) -> None:
        self._settings, self._role = settings, role
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Have nothing open: nor what a process had that this one is a fork of."""
        self._opening = threading.Lock()
        self._client: redis.Redis | None = None
        #: closes it in time: among what is collected together, its sockets may come before it
        self._closing: finalize[Any, Any] | None = None
        self._url = ""
        self._failure: FleetError | None = None
        self._failed_at = 0.0

    @classmethod
    def of(cls, settings: Settings, role: Role) -> KeptConnection:
        """The one that all have who look at this server as this role."""
        with _SHARING:
            return _SHARED.setdefault(
                (settings.redis_url, settings.home, role), cls(settings, role)
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Who is copied to another process looks through a connection of that one."""
        return type(self).of, (self._settings, self._role)

    @contextmanager
    def use(self) -> Iterator[redis.Redis]:
        """The client, for one look.

        Raises:
            RedisUnavailableError: The server does not answer, or not to the end of the look.
            RightsMissingError: Its user may not do all that the role does, or not any more.
            InvalidInputError: The URL is none, or the server evicts keys.
        """
        client = self._opened()
        try:
            with suppress(redis.exceptions.NoPermissionError):
                client.ping()  # who goes on without a server that is away sees it here
            yield client
        except redis.exceptions.ReadOnlyError:
            self._forget(client)  # another server has its place, and perhaps its name
            raise
        except redis.exceptions.NoPermissionError as error:
            self._forget(client)
            if (refused := lacking(client, self._role, self._settings)) is not None:
                raise refused from error
            raise
        except redis.RedisError as error:
            if not is_general(error):
                raise
            self._forget(client)
            raise unavailable(error, self._settings) from error

    def _opened(self) -> redis.Redis:
        asked_at = time.monotonic()
        with self._opening:
            url = resolve_url(self._settings)
            if self._client is None or url != self._url:
                if self._failure is not None and self._failed_at >= asked_at:
                    # it was tried while this one waited: of many, none waits for all the others
                    raise type(self._failure)(str(self._failure)) from self._failure.__cause__
                self._leave()
                self._client, self._url = self._open(), url
                self._closing = finalize(self, self._client.close)
            return self._client

    def _open(self) -> redis.Redis:
        self._failure = None
        try:
            return connect(self._settings, self._role)
        except FleetError as error:
            self._failure, self._failed_at = error, time.monotonic()
            raise

    def _forget(self, client: redis.Redis) -> None:
        with self._opening:
            if self._client is client:
                self._leave()

    def _leave(self) -> None:
        """Have nothing open; who is at a look goes on with what it has."""
        self._client = None
        if self._closing is not None:
            self._closing.detach()
            self._closing = None


def _begin_anew() -> None:
    """In a fork: a thread that was at a look is not there, and what it had locked stays locked."""
    global _SHARING
    _SHARING = threading.Lock()
    for kept in list(_SHARED.values()):
        kept._leave()
        kept._begin_anew()


os.register_at_fork(after_in_child=_begin_anew)
