"""The address of the fleet's Redis: what it may be, how each client takes it, how it is shown.

Invariant: both clients, redis-py and kombu, reach the same server over the same transport, with the
same certificates verified; and no text that is shown holds a password.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from workers.passwords import learn_from
from workers.protocol.errors import InvalidInputError

#: How a URL may begin, and the transport that it names.
_TRANSPORTS: Final = {
    "redis": "redis",
    "rediss": "rediss",
    "unix": "unix",
    "redis+socket": "unix",
}

#: What people write for kinds of servers that the fleet does not speak to.
_REFUSED: Final = {
    "sentinel": "Redis Sentinel is not supported: give the address of the primary, or of a proxy"
    " that follows it",
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

_FORMS: Final = (
    "write redis://[user:password@]host:port/db, rediss://... for TLS, or"
    " unix://[user:password@]/path?db=0"
)


@dataclass(frozen=True)
class Address:
    """A server, and how to reach it."""

    transport: str
    """`redis`, `rediss` or `unix`."""
    place: str
    """`host:port`, or the path of a socket."""
    db: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    tls: dict[str, Any] = field(default_factory=dict)
    """Of `rediss`: what both clients are told of certificates; verified unless it says not to."""

    @property
    def client_url(self) -> str:
        """For redis-py."""
        if self.transport == "unix":
            return f"unix://{self._credentials}{quote(self.place)}?db={self.db}"
        return f"{self.transport}://{self._credentials}{self.place}/{self.db}"

    @property
    def broker_url(self) -> str:
        """For kombu."""
        if self.transport == "unix":
            return f"redis+socket://{self._credentials}{quote(self.place)}?virtual_host={self.db}"
        return self.client_url

    @property
    def broker_settings(self) -> dict[str, Any]:
        """Celery's settings for this server."""
        tls = {"broker_use_ssl": self.tls} if self.transport == "rediss" else {}
        return {"broker_url": self.broker_url, **tls}

    def __str__(self) -> str:
        hidden = "***@" if self.username or self.password else ""
        tail = f"?db={self.db}" if self.transport == "unix" else f"/{self.db}"
        return f"{self.transport}://{hidden}{self.place}{tail}"

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
    if "," in parts.netloc.rpartition("@")[2]:
        raise ValueError("it names several servers")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    query.setdefault("db", query.pop("virtual_host", ""))
    for name in query:
        if name not in _ALLOWED:
            raise ValueError(f"{name} is no option (there are {', '.join(_ALLOWED)})")
    transport = _TRANSPORTS[parts.scheme]
    path = unquote(parts.path)
    place = path if transport == "unix" else f"{_host(parts.hostname)}:{parts.port or 6379}"
    number = query["db"] or ("" if transport == "unix" else path.strip("/")) or "0"
    if not number.isdigit():
        raise ValueError(f"its database is {number!r}, and not a number")
    if transport == "unix" and not path.strip("/"):
        raise ValueError("it names no socket")
    tls = {name: value for name, value in query.items() if name.startswith("ssl_")}
    if tls and transport != "rediss":
        raise ValueError(f"{next(iter(tls))} is for rediss:// alone")
    return Address(
        transport,
        place,
        int(number),
        _decoded(parts.username) or query.get("username") or None,
        _decoded(parts.password) or query.get("password") or None,
        _tls(tls) if transport == "rediss" else {},
    )


def _tls(query: dict[str, str]) -> dict[str, Any]:
    """What both clients are told, verified unless the URL says not to."""
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
