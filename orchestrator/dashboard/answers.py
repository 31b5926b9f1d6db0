"""What is answered: documents as strict JSON without passwords, and errors as one clear line each.

Invariant: no answer holds a traceback, nor a password that this process was given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import redis
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.views.complaints import complaint_of
from workers.passwords import hide
from workers.protocol.errors import (
    FleetError,
    InvalidInputError,
    RedisUnavailableError,
    StudyNotKnownError,
)
from workers.protocol.plain import plain_text, strict_json

#: What kinds of errors are to HTTP; the first that applies counts.
_STATUSES: Final[tuple[tuple[type[Exception], int], ...]] = (
    (StudyNotKnownError, 404),
    (RedisUnavailableError, 503),
    (redis.RedisError, 503),
    (InvalidInputError, 400),
    (FleetError, 503),
    (OSError, 503),
)

#: Beyond it, a browser reads another whole number than was written.
_MAX_EXACT: Final = 2**53 - 1


def encode(document: Any) -> bytes:
    """A document as JSON by its standard, as browsers read it: what is no number to them is text.

    What was learned as a password is hidden in its texts.
    """
    shown = strict_json(_readable(document))
    text = json.dumps(shown, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace")


def answer(document: Any, status: int = 200) -> Response:
    """A response with a document; no cache keeps it."""
    headers = {"cache-control": "no-store"}
    return Response(encode(document), status, headers, media_type="application/json")


def refusal(status: int, message: str, kind: str = "Refused") -> Response:
    """A response with what is wrong."""
    told = {"error": {"kind": kind, "message": plain_text(message, 2000)}}
    return answer(told, status)


def trouble(error: Exception) -> dict[str, Any]:
    """What is to be said of an error, in one line."""
    complaint = complaint_of(error)
    return {"error": {"kind": complaint.kind, "message": complaint.message}}


def status_of(error: Exception) -> int:
    """What an error is to HTTP; 500 for one that nobody foresaw."""
    return next((code for kind, code in _STATUSES if isinstance(error, kind)), 500)


def _of_error(_request: Request, error: Exception) -> Response:
    return answer(trouble(error), status_of(error))


def _of_http(_request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return refusal(error.status_code, str(error.detail))
    return refusal(500, "it cannot be answered")


#: By what an application answers errors.
HANDLERS: Final[Mapping[Any, Callable[[Request, Exception], Response]]] = {
    HTTPException: _of_http,
    **dict.fromkeys((FleetError, redis.RedisError, OSError), _of_error),
}


def _readable(value: Any) -> Any:
    """A value that holds no whole number that browsers would round, and no password.

    What people call their parameters may be one.
    """
    if isinstance(value, str):
        return plain_text(hide(value))
    if isinstance(value, int) and abs(value) > _MAX_EXACT:
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_readable(item) for item in value]
    if isinstance(value, dict):
        return {_readable(str(key)): _readable(item) for key, item in value.items()}
    return value
