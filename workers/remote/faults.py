"""Which errors of a hub or a file server will pass by themselves.

A name that does not resolve, a refused or broken connection, a timeout, a server that is busy or
broken: these will pass. A repository that is not there, a missing right, a certificate that does
not hold, a switched-off network: these will not, however often one asks.

Invariant: an error that is not known to pass is one that will not.
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final

#: What a network or a file share says that is away for a while.
_PASSING_ERRNO: Final = frozenset(
    {
        errno.EIO, errno.EREMOTEIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN,
        errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.ECONNREFUSED,
        errno.ECONNRESET, errno.ECONNABORTED, errno.ENOTCONN, errno.EPIPE, errno.EAGAIN,
    }
)  # fmt: skip

#: Below 500, what asks to come back later.
_PASSING_STATUS: Final = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
)

#: Of the HTTP libraries that hubs are asked by, which need not be installed: a broken connection.
_PASSING_NAMES: Final = frozenset(
    {
        *(
            f"{library}.{name}"
            for library in ("httpx", "httpx2", "httpcore", "httpcore2")
            for name in ("TimeoutException", "NetworkError", "RemoteProtocolError", "ProxyError")
        ),
        "requests.ConnectionError", "requests.Timeout", "requests.ChunkedEncodingError",
        "urllib3.ProtocolError", "urllib3.NewConnectionError", "urllib3.ReadTimeoutError",
        "aiohttp.ClientConnectionError", "aiohttp.ClientPayloadError", "http.IncompleteRead",
        "huggingface_hub.XetDownloadError",
    }
)  # fmt: skip

#: A switched-off network, by its name: the library need not be installed.
_OFFLINE: Final = "huggingface_hub.OfflineModeIsEnabled"

#: Seconds after which a server is asked again, whatever it wants.
_LONGEST_PAUSE: Final = 3600.0

#: How `huggingface_hub` says that a download broke off.
_BROKE_OFF: Final = "Consistency check failed"


def will_pass(error: BaseException) -> bool:
    """Whether the same call may well succeed later, by an error and what it came from."""
    chain = list(_chain(error))
    if any(_is_definite(each) for each in chain):
        return False
    return any(_is_passing(each) for each in chain)


def wanted_pause(error: BaseException) -> float:
    """Seconds that the server wants to be left alone: `Retry-After`, of which 0 is none."""
    for each in _chain(error):
        headers: Any = getattr(getattr(each, "response", None), "headers", None)
        text = None if headers is None else headers.get("retry-after")
        if text is not None:
            return min(max(0.0, _seconds(str(text))), _LONGEST_PAUSE)
    return 0.0


def first_cause(error: BaseException) -> str:
    """The root of an error in one line, for people: what the network or the server said."""
    known = [each for each in _chain(error) if _is_passing(each)] or [error]
    text = str(known[0]).strip().splitlines()
    return text[0] if text else type(known[0]).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_definite(error: BaseException) -> bool:
    if isinstance(error, ssl.SSLCertVerificationError) or _OFFLINE in _names(error):
        return True
    status = _status(error)
    return status is not None and status >= HTTPStatus.BAD_REQUEST and not _passes(status)


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, TimeoutError | ConnectionError):
        return True
    status = _status(error)
    if status is not None:
        return _passes(status)
    if isinstance(error, OSError) and (error.errno in _PASSING_ERRNO or _BROKE_OFF in str(error)):
        return True
    return "socket.gaierror" in _names(error) or not _PASSING_NAMES.isdisjoint(_names(error))


def _passes(status: int) -> bool:
    never = {HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED}
    is_broken = status >= HTTPStatus.INTERNAL_SERVER_ERROR and status not in never
    return status in _PASSING_STATUS or is_broken


def _status(error: BaseException) -> int | None:
    """The status of an HTTP answer that was raised as an error."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None:
        status = getattr(error, "status", None)  # aiohttp
    return status if isinstance(status, int) else None


def _names(error: BaseException) -> set[str]:
    """The classes of an error, each as `library.Class`."""
    return {f"{each.__module__.partition('.')[0]}.{each.__name__}" for each in type(error).__mro__}


def _seconds(text: str) -> float:
    """`Retry-After`: seconds, or a date."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return 0.0
