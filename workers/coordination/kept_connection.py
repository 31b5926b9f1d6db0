"""A connection of who looks again and again: opened and checked once, so that a look costs a look.

Invariant: a server that goes away, or refuses, in the midst of a look is told in the words of
`connect`, and the next look opens anew.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import redis

from workers.coordination.connection import connect, lacking, resolve_url, unavailable
from workers.coordination.rights import Role
from workers.settings import Settings

_Key = tuple[str | None, Path, Role]

#: Those that somebody has: all who look at one server as one role look through one connection.
_SHARED: Final[WeakValueDictionary[_Key, KeptConnection]] = WeakValueDictionary()
_SHARING: Final = threading.Lock()


class KeptConnection:
    """A client of the fleet's Redis that is opened at its first use; threads may share it.

    It is closed when nobody has it any more.

    Args:
        settings: Name the server. An embedded one that began anew elsewhere is followed there.
        role: What this process is to the fleet.
    """

    def __init__(self, settings: Settings, role: Role) -> None:
        self._settings, self._role = settings, role
        self._opening = threading.Lock()
        self._client: redis.Redis | None = None
        self._url = ""

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
        except (redis.ConnectionError, redis.TimeoutError) as error:
            self._forget(client)
            raise unavailable(error, self._settings) from error
        except redis.exceptions.NoPermissionError as error:
            self._forget(client)
            if (refused := lacking(client, self._role, self._settings)) is not None:
                raise refused from error
            raise

    def _opened(self) -> redis.Redis:
        with self._opening:
            url = resolve_url(self._settings)
            if self._client is None or url != self._url:
                self._client, self._url = connect(self._settings, self._role), url
            return self._client

    def _forget(self, client: redis.Redis) -> None:
        with self._opening:
            if self._client is client:
                self._client = None
