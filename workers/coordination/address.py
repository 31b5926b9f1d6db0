"""The address of the fleet's Redis: what it may be, how each client takes it, how it is shown.

Invariant: both clients, redis-py and kombu, reach the same server over the same transport, with the
same certificates verified, or ask the same sentinels for it; and no text that is shown holds a
password.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from redis.backoff import NoBackoff
from redis.retry import Retry

from workers.passwords import learn_from
from workers.protocol.errors import InvalidInputError

#: How a URL may begin, and the transport that it names.
_TRANSPORTS: Final = {
    "redis": "redis",
    "rediss": "rediss",
    "unix": "unix",
    "redis+socket": "unix",
    "sentinel": "sentinel",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "rediss+sentinel",
}

#: Those that verify certificates.
_TLS: Final = ("rediss", "rediss+sentinel")

#: Those whose servers are asked where the server is.
_SENTINEL: Final = ("sentinel", "rediss+sentinel")

_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379

#: What people write for kinds of servers that the fleet does not speak to.
_REFUSED: Final = {
    "cluster": "Redis Cluster is not supported, for a script of the fleet touches keys of several"
    " slots: use one Redis or Valkey",
}

_VERIFY: Final = {
    "required": ssl.CERT_REQUIRED,
    "cert_required": ssl.CERT_REQUIRED,
    "optional": ssl.CERT_OPTIONAL,
    "cert_optional": ssl.CERT_OPTIONAL,
    "none": ssl.CERT_NONE,
    "cert_none": ssl.CERT_NONE,
}

#: The certificates that a URL may name, each a path.
_PATHS: Final = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")

_ALLOWED: Final = (*_PATHS, "ssl_cert_reqs", "ssl_check_hostname", "db", "username", "password")

#: What only the URL of sentinels may name.
_OF_SENTINELS: Final = ("service", "sentinel_username", "sentinel_password")

_FORMS: Final = (
    "write redis://[user:password@]host:port/db, rediss://... for TLS,"
    " unix://[user:password@]/path?db=0, or"
    " sentinel://[user:password@]host:26379,host:26379/db?service=NAME (rediss+sentinel://... for"
    " TLS)"
)

#: A sentinel that takes longer is passed over: the next one knows as much.
SENTINEL_SECONDS: Final = 1.0

#: A worker waits in a server's BRPOP. Of a primary that hangs, or whose host is gone, no end of the
#: connection is heard, and unlike a single server it does not come back: kombu leaves one that has
#: not answered for so much longer than a BRPOP takes, and asks the sentinels anew.
_HEALTH_CHECK_SECONDS: Final = 5

#: What else a worker asks of a server takes no longer.
_ANSWER_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Address:
    """A server, and how to reach it."""

    transport: str
    """`redis`, `rediss`, `unix`, `sentinel` or `rediss+sentinel`."""
    place: str
    """`host:port`, those of all sentinels with commas between them, or the path of a socket."""
    db: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    tls: dict[str, Any] = field(default_factory=dict)
    """Of `rediss`: what both clients are told of certificates; verified unless it says not to."""
    service: str = ""
    """Of sentinels: what they call the server that they watch."""
    sentinel_username: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)

    @property
    def is_tls(self) -> bool:
        """Whether what is said to the server, and to its sentinels, is encrypted."""
        return self.transport in _TLS

    @property
    def sentinels(self) -> list[tuple[str, int]]:
        """Host and port of each sentinel; of a server that has none, none."""
        return self._places if self.transport in _SENTINEL else []

    @property
    def sentinel_options(self) -> dict[str, Any]:
        """What a connection to a sentinel is told."""
        return {
            "socket_timeout": SENTINEL_SECONDS,
            "socket_connect_timeout": SENTINEL_SECONDS,
            # the next one is asked instead
            "retry": Retry(NoBackoff(), 0),
            "username": self.sentinel_username,
            "password": self.sentinel_password,
            **({"ssl": True, **self.tls} if self.is_tls else {}),
        }

    @property
    def client_url(self) -> str:
        """For redis-py, of a server that is not asked for."""
        if self.transport == "unix":
            return f"unix://{self._credentials}{quote(self.place)}?db={self.db}"
        return f"{self.transport}://{self._credentials}{self.place}/{self.db}"

    @property
    def broker_url(self) -> str:
        """For kombu."""
        if self.transport == "unix":
            return f"redis+socket://{self._credentials}{quote(self.place)}?virtual_host={self.db}"
        if self.sentinels:
            # each with user and database: it takes all of one of them where another fails
            return ";".join(
                f"sentinel://{self._credentials}{place}/{self.db}"
                for place in self.place.split(",")
            )
        return self.client_url

    def broker_settings(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Celery's settings for this server.

        Args:
            options: Of its transport.
        """
        if self.sentinels:
            options = {
                # a worker that acknowledges to a primary that stands still would wait for ever
                "socket_timeout": _ANSWER_SECONDS,
                **options,
                "master_name": self.service,
                "sentinel_kwargs": self.sentinel_options,
                "health_check_interval": _HEALTH_CHECK_SECONDS,
            }
        tls = {"broker_use_ssl": self.tls} if self.is_tls else {}
        return {"broker_url": self.broker_url, "broker_transport_options": dict(options), **tls}

    def __str__(self) -> str:
        hidden = "***@" if self.username or self.password else ""
        tail = f"?db={self.db}" if self.transport == "unix" else f"/{self.db}"
        service = f"?service={self.service}" if self.sentinels else ""
        return f"{self.transport}://{hidden}{self.place}{tail}{service}"

    @property
    def _places(self) -> list[tuple[str, int]]:
        found = [urlsplit(f"//{place}") for place in self.place.split(",")]
        return [(each.hostname or "", each.port or _SENTINEL_PORT) for each in found]

    @property
    def _credentials(self) -> str:
        if self.username is None and self.password is None:
            return ""
        user, password = quote(self.username or "", safe=""), quote(self.password or "", safe="")
        return f"{user}:{password}@"


def parse_address(url: str) -> Address:
    """Read a URL.

    Raises:
        InvalidInputError: It is none, or names a kind of server that the fleet does not speak to.
    """
    learn_from(url)
    try:
        return _parse(url)
    except ValueError as error:
        raise InvalidInputError(
            f"FLEET_REDIS_URL = {redact(url)!r} is no Redis URL: {error}; {_FORMS}"
        ) from error


def redact(url: str) -> str:
    """A URL without user, password and query, for messages and logs; of any kind."""
    without_query = re.sub(r"\?.*", "?***" if "?" in url else "", url, flags=re.DOTALL)
    return re.sub(r"^([A-Za-z0-9+.-]*://)?.*@", r"\1***@", without_query, flags=re.DOTALL)


def _parse(url: str) -> Address:
    parts = urlsplit(url.strip())
    for kind, refusal in _REFUSED.items():
        if kind in parts.scheme:
            raise InvalidInputError(f"FLEET_REDIS_URL = {redact(url)!r}: {refusal}")
    if parts.scheme not in _TRANSPORTS:
        raise ValueError(f"it begins with {parts.scheme!r}" if parts.scheme else "it has no scheme")
    transport = _TRANSPORTS[parts.scheme]
    query = _query(transport, parts.query)
    path = unquote(parts.path)
    number = query["db"] or ("" if transport == "unix" else path.strip("/")) or "0"
    if not number.isdigit():
        raise ValueError(f"its database is {number!r}, and not a number")
    if transport == "unix" and not path.strip("/"):
        raise ValueError("it names no socket")
    return Address(
        transport,
        path if transport == "unix" else _place(transport, parts.netloc.rpartition("@")[2]),
        int(number),
        _decoded(parts.username) or query.get("username") or None,
        _decoded(parts.password) or query.get("password") or None,
        _tls(query) if transport in _TLS else {},
        query.get("service", ""),
        query.get("sentinel_username") or None,
        query.get("sentinel_password") or None,
    )


def _query(transport: str, text: str) -> dict[str, str]:
    """The options that a URL names, each one that its transport has."""
    query = dict(parse_qsl(text, keep_blank_values=True))
    query.setdefault("db", query.pop("virtual_host", ""))
    is_of_sentinels = transport in _SENTINEL
    allowed = (*_ALLOWED, *_OF_SENTINELS) if is_of_sentinels else _ALLOWED
    for name in query:
        if name in _OF_SENTINELS and not is_of_sentinels:
            raise ValueError(f"{name} is for sentinel:// alone")
        if name not in allowed:
            raise ValueError(f"{name} is no option (there are {', '.join(allowed)})")
        if name.startswith("ssl_") and transport not in _TLS:
            raise ValueError(f"{name} is for rediss:// and rediss+sentinel:// alone")
    if is_of_sentinels and not query.get("service"):
        raise ValueError(
            "it names no service: ?service=NAME, with the name in the sentinels' own"
            " `sentinel monitor NAME ...`"
        )
    return query


def _place(transport: str, text: str) -> str:
    """Host and port of a server, or of each sentinel."""
    if transport in _SENTINEL:
        return ",".join(_one_place(each, _SENTINEL_PORT) for each in text.split(","))
    if "," in text:
        raise ValueError("it names several servers")
    return _one_place(text, _PORT)


def _one_place(text: str, port: int) -> str:
    parts = urlsplit(f"//{text}")
    return f"{_host(parts.hostname)}:{parts.port or port}"


def _tls(query: dict[str, str]) -> dict[str, Any]:
    """What both clients are told of certificates, verified unless the URL says not to."""
    verify = query.get("ssl_cert_reqs", "required").lower()
    if verify not in _VERIFY:
        raise ValueError(f"ssl_cert_reqs={verify} is none of required, optional, none")
    for name in _PATHS:
        if name in query and not Path(query[name]).exists():
            raise ValueError(f"{name}={query[name]}: there is no such file")
    checks = query.get("ssl_check_hostname", "true").lower()
    if checks not in {"true", "false", "1", "0", "yes", "no"}:
        raise ValueError(f"ssl_check_hostname={checks} is neither true nor false")
    return {
        **{name: query[name] for name in _PATHS if name in query},
        "ssl_cert_reqs": _VERIFY[verify],
        "ssl_check_hostname": _VERIFY[verify] is not ssl.CERT_NONE
        and checks in {"true", "1", "yes"},
    }


def _host(name: str | None) -> str:
    host = name or "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _decoded(text: str | None) -> str | None:
    return None if text is None else unquote(text)
