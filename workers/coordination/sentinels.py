"""A client of the server that sentinels call the primary, whichever that is by now.

Invariant: a connection to a server that takes no writes any more is left at once, and the sentinels
are asked before the next one.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import redis
from redis.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

from workers.coordination.address import Address

#: What a server answers that was a primary: it follows another one, or its replicas do. In scripts,
#: servers before Redis 7 put it behind words of their own.
_DEMOTED: Final = re.compile(r"\b(READONLY|UNBLOCKED|NOREPLICAS)\b")


class UnknownServiceError(MasterNotFoundError):
    """Sentinels answer, and none of them watches a service of that name."""


class DemotedError(redis.ConnectionError):
    """A server refused a write: it follows another one by now, or has lost its replicas."""


class Sentinels(Sentinel):
    """The sentinels of a service, who are asked who its primary is.

    Each over a connection that is closed when it has answered: every process of a fleet asks, and
    seldom.
    """

    sentinels: list[redis.Redis]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        #: of this process's threads one asks: to close a connection closes those of all
        self._lock = threading.Lock()

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """Host and port of the primary, by the first sentinel that knows it.

        Raises:
            UnknownServiceError: Those that answer watch no such service.
            MasterNotFoundError: None answers, or each takes the primary for dead.
        """
        with self._lock:
            return self._discover(service_name)

    def _discover(self, service_name: str) -> tuple[str, int]:
        said = {}
        for sentinel in tuple(self.sentinels):
            named = "{host}:{port}".format_map(sentinel.connection_pool.connection_kwargs)
            try:
                masters = sentinel.sentinel_masters()
            except (redis.ConnectionError, redis.TimeoutError) as error:
                said[named] = f"does not answer ({error})"
                continue
            finally:
                sentinel.close()
            state = masters.get(service_name)
            if state and self.check_master_state(state, service_name):
                others = (other for other in self.sentinels if other is not sentinel)
                self.sentinels = [sentinel, *others]
                return state["ip"], state["port"]
            said[named] = "takes it for dead" if state else f"watches {sorted(masters)}"
        told = "; ".join(f"{named} {what}" for named, what in said.items())
        is_unknown = any(what.startswith("watches") for what in said.values())
        kind = UnknownServiceError if is_unknown else MasterNotFoundError
        raise kind(f"no sentinel knows a primary of {service_name!r}: {told}")


class _LeavesDemoted(SentinelManagedConnection):
    """Leaves a server that was demoted; redis-py itself does so where it says READONLY alone."""

    #: Whether what only asks for rights is told the server's own words.
    is_probing = False

    def send_packed_command(self, *args: Any, **options: Any) -> None:
        if not self._sock:
            self._connect_retry()  # redis-py itself would try the same server again
        super().send_packed_command(*args, **options)

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)
        except redis.ResponseError as error:
            if self.is_probing or _DEMOTED.search(str(error)) is None:
                raise
            self.disconnect()
            raise DemotedError(
                f"it takes no writes: it is no primary any more, or too few replicas follow it"
                f" ({error})"
            ) from error


class _LeavesDemotedTLS(_LeavesDemoted, SentinelManagedSSLConnection):
    """The same, encrypted."""


@contextmanager
def probing(connection: redis.Connection) -> Iterator[None]:
    """Have a server that takes no writes say so in its own words, and be stayed with."""
    if not isinstance(connection, _LeavesDemoted):
        yield
        return
    connection.is_probing = True
    try:
        yield
    finally:
        connection.is_probing = False


def open_client(address: Address, **options: Any) -> redis.Redis:
    """A client of the primary, which is looked for at its first call.

    Args:
        address: Of sentinels.
        options: Of connections to the primary.
    """
    sentinels = Sentinels(address.sentinels, sentinel_kwargs=address.sentinel_options)
    client: redis.Redis = sentinels.master_for(
        address.service,
        connection_class=_LeavesDemotedTLS if address.is_tls else _LeavesDemoted,
        db=address.db,
        username=address.username,
        password=address.password,
        **address.tls,
        **options,
    )
    return client
