"""Server-sent events: what changes is sent to each page, and the reason when nothing can.

Invariant: a page that is closed costs nothing, pages of one study share its reading, and a page
that stands open takes a few hundredths of a core, which may be one that trains.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Final

import anyio
import anyio.to_thread
from starlette.responses import StreamingResponse

from orchestrator.dashboard.answers import encode, trouble
from workers.protocol.plain import describe_error

#: Between two looks.
LOOK_SECONDS: Final = 0.5

#: How many times as long as a look took it is, up to this long; and how many times in any case.
_EASE: Final = 24.0
_EASED_SECONDS: Final = 3.0
_LEAST_EASE: Final = 4.0

#: How often something is sent in any case, so that either side sees that the other is gone.
_SIGN_SECONDS: Final = 10.0

#: Characters by which one trouble is told from another.
_MAX_PROBLEM: Final = 500

_HEADERS: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}

Look = Callable[[], bytes | None]


def stream(look: Look, *, is_closing: Callable[[], bool]) -> StreamingResponse:
    """A response that goes on until the page is closed, or the server.

    Args:
        look: The document to be sent now, encoded; None for nothing. It may block, and fail.
        is_closing: Whether the server ends.
    """
    events = _events(look, is_closing)
    return StreamingResponse(events, headers=_HEADERS, media_type="text/event-stream")


async def _events(look: Look, is_closing: Callable[[], bool]) -> AsyncIterator[bytes]:
    sent_at = time.monotonic()
    problem: str | None = None
    yield b": hello\n\n"
    while not is_closing():
        began, before = time.monotonic(), problem
        try:
            found, problem = await anyio.to_thread.run_sync(look), None
            chunk = b"" if found is None else _event("news", found)
        except Exception as error:  # noqa: BLE001 - whatever it is, the page is told
            problem = describe_error(error, _MAX_PROBLEM)
            # a traceback that is kept is kept once
            chunk = b"" if problem == before else _event("trouble", encode(trouble(error)))
        if not chunk and time.monotonic() - sent_at > _SIGN_SECONDS:
            chunk = b": still here\n\n"
        if chunk:
            yield chunk
            sent_at = time.monotonic()
        if problem is None and before is not None:
            yield _event("well", encode({}))
        await anyio.sleep(seconds_between(time.monotonic() - began))


def seconds_between(took: float) -> float:
    """How long the next look waits after one that took so many seconds."""
    return max(LOOK_SECONDS, min(_EASE * took, _EASED_SECONDS), _LEAST_EASE * took)


def _event(kind: str, document: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), document)
