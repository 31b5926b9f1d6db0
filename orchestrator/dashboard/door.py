"""Who may come in: the token, the hosts and origins that are answered, and the headers of answers.

The token travels in a header of its own, never in a cookie: a browser sends a cookie to every port
of this host. What the cookie holds is made of the token, and opens reading alone.

Invariant: no request reaches what writes without the token, and none of a foreign page reaches
anything.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.dashboard.answers import refusal
from workers.coordination.address import parse_address
from workers.passwords import has_password, learn
from workers.protocol.errors import InvalidInputError
from workers.settings import Settings

TOKEN_HEADER: Final = "x-trialfleet-token"  # noqa: S105 - its name, not a token

#: Methods that change nothing.
_READING: Final = frozenset({"GET", "HEAD"})

#: What is answered without the token: the one document, in which people give it, and its files.
_PUBLIC: Final = ("/studies/", "/assets/")

#: What a public address begins with, and the ports that browsers leave out.
_PORTS: Final = {"http": 80, "https": 443}

#: A shorter token can be guessed.
_LEAST_TOKEN: Final = 16

#: Bytes of a path with its query; no address of the page is half as long.
_MAX_TARGET: Final = 2048

#: What a browser may load for the page, and what may frame it: from here alone, and nobody.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this host alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def is_open_to_this_host(settings: Settings) -> bool:
    """Whether anybody on this host could read the fleet's Redis anyway, without a secret."""
    if settings.redis_url is None or settings.secret is not None:
        return False  # an embedded Redis has a password of its own
    if settings.storage is not None and has_password(settings.storage):
        return False
    address = parse_address(settings.redis_url)
    is_kept = address.password or address.transport == "unix" or "ssl_certfile" in address.tls
    return not is_kept


@dataclass(frozen=True)
class Door:
    """The rules for one address.

    Args:
        host: What is bound to.
        token: Given by people; by default one is drawn, which only a loopback address allows.
        is_open: Whether whoever is on this host may read; of other hosts nobody may.
        public_url: Where people find it, if a proxy is before it: its host and origin are the
            page's, too. Whoever comes from there comes from another host.
        has_tls: Whether it is spoken to over TLS.

    Raises:
        InvalidInputError: The public address is none, or has a path; the token can be guessed or
            does not fit a header, or is missing where other hosts get in.
    """

    host: str
    token: str = field(default="", repr=False)
    is_open: bool = False
    public_url: str = ""
    has_tls: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "public_url", _origin_of(self.public_url))
        if not self.token and not is_loopback(self.host):
            raise InvalidInputError(
                f"--host {self.host}: other hosts could reach the page there; give it a --token"
                " (or FLEET_DASHBOARD_TOKEN) that they need, or leave --host out and forward the"
                " port: ssh -L 8000:127.0.0.1:PORT"
            )
        if self.token and not _is_good(self.token):
            raise InvalidInputError(
                f"--token: give at least {_LEAST_TOKEN} letters, digits, dashes and underscores,"
                ' such as those of: python -c "import secrets; print(secrets.token_urlsafe())"'
            )
        if not self.token:
            object.__setattr__(self, "token", secrets.token_urlsafe(24))
        learn(self.token)
        learn(self._made_of_the_token("reading"))

    @property
    def is_open_to_readers(self) -> bool:
        """Whether reading takes no token: whoever gets in is on this host, and may."""
        return self.is_open and is_loopback(self.host) and not self.public_url

    @property
    def cookie_name(self) -> str:
        """Of the cookie; pages of several fleets on one host keep theirs apart."""
        return f"trialfleet-{self._made_of_the_token('name')[:12]}"

    def let_read(self, answer: Response) -> None:
        """Have the browser that gets this answer read from now on, in each of its tabs."""
        answer.set_cookie(
            self.cookie_name,
            self._made_of_the_token("reading"),
            path="/",
            secure=self.has_tls or self.public_url.startswith("https://"),
            httponly=True,
            samesite="strict",
        )

    def may_read(self, headers: Headers) -> bool:
        """Whether a request may read: its host may, or it has the cookie or the token."""
        given = cookie_parser(headers.get("cookie", "")).get(self.cookie_name, "")
        has_cookie = hmac.compare_digest(
            given.encode("utf-8", "surrogateescape"), self._made_of_the_token("reading").encode()
        )
        return self.is_open_to_readers or has_cookie or self.knows(headers)

    def knows(self, headers: Headers) -> bool:
        """Whether a request has the token; compared in constant time."""
        given = headers.get(TOKEN_HEADER, "")
        return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self.token.encode())

    def refuses(self, scope: Scope) -> tuple[int, str] | None:
        """Why a request does not get in: a status and the reason; None if it does."""
        headers = Headers(scope=scope)
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > _MAX_TARGET:
            return 414, f"an address of more than {_MAX_TARGET} bytes is none of this page"
        host = headers.get("host", "")
        # a name that somebody else's server resolves to this address is not this page's
        if is_loopback(self.host) and not self._is_own(_name_in(host)):
            return 403, self._said_of_names()
        if _is_foreign(headers, host, self.public_url):
            return 403, "another page may not ask this one for anything"
        if scope["method"] in _READING:
            path = scope["path"]
            is_allowed = path == "/" or path.startswith(_PUBLIC) or self.may_read(headers)
        else:
            is_allowed = self.knows(headers)
        if is_allowed:
            return None
        return 403, (
            "this takes the token: open the link that `trialfleet dashboard` printed when it began"
        )

    def _is_own(self, name: str) -> bool:
        return is_loopback(name) or (name != "" and name == _name_in(self._public_host()))

    def _public_host(self) -> str:
        return self.public_url.partition("://")[2]

    def _said_of_names(self) -> str:
        if self.public_url:
            return f"this page is answered at {self.public_url}, 127.0.0.1 and localhost alone"
        return (
            "this page is answered at 127.0.0.1 and localhost alone; behind a proxy, begin it with"
            " `trialfleet dashboard --public-url https://NAME`"
        )

    def _made_of_the_token(self, purpose: str) -> str:
        return hmac.new(self.token.encode(), f"trialfleet {purpose}".encode(), "sha256").hexdigest()


class Guard:
    """The middleware that keeps the door."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it; nothing but HTTP is spoken."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = self._door.refuses(scope)
        answer = self._app if refused is None else refusal(*refused)
        await answer(scope, receive, send_guarded)


def _is_good(token: str) -> bool:
    signs = token.replace("-", "").replace("_", "")
    return len(token) >= _LEAST_TOKEN and signs.isascii() and signs.isalnum()


def _name_in(host: str) -> str:
    """The name in a `Host` header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _origin_of(url: str) -> str:
    """The origin of a public address, as browsers write it; of none, nothing.

    Raises:
        InvalidInputError: It is no address of a whole host.
    """
    if not url:
        return ""
    try:
        found = urlsplit(url)
        port = "" if found.port in {None, _PORTS.get(found.scheme)} else f":{found.port}"
    except ValueError:
        found, port = urlsplit(""), ""
    is_whole = found.path in {"", "/"} and not (found.query or found.fragment or found.username)
    if found.scheme not in _PORTS or not found.hostname or not is_whole:
        raise InvalidInputError(
            f"--public-url {url}: write it as people type it, such as https://fleet.example; the"
            " page is at the root of its host, so it has no path"
        )
    name = f"[{found.hostname}]" if ":" in found.hostname else found.hostname
    return f"{found.scheme}://{name}{port}"


def _is_foreign(headers: Headers, host: str, public_origin: str) -> bool:
    """Whether a browser asks for another page than this one."""
    origin = headers.get("origin")
    if origin is not None and not _is_own_origin(origin.lower(), host.lower(), public_origin):
        return True
    # a link on another page may lead here; nothing else of it may
    is_visit = headers.get("sec-fetch-mode") == "navigate"
    site = headers.get("sec-fetch-site", "none")
    return site not in {"none", "same-origin"} and not is_visit


def _is_own_origin(origin: str, host: str, public_origin: str) -> bool:
    if public_origin and origin == public_origin:
        return True
    is_public = _name_in(host) == _name_in(public_origin.partition("://")[2]) != ""
    return not is_public and origin.partition("://")[2] == host
