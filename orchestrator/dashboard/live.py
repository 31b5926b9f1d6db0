"""Server-sent events: what changes is sent to each page, and the reason when nothing can.

Invariant: a page that is closed costs nothing, pages of one study share its reading, and a look
takes no more than a fraction of the time between two.
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

#: Between two looks, and how many times as long as a look took it is at least.
LOOK_SECONDS: Final = 0.5
_EASE: Final = 4.0

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
        await anyio.sleep(max(LOOK_SECONDS, _EASE * (time.monotonic() - began)))


def _event(kind: str, document: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), document)
