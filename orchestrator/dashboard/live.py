"""Server-sent events: what changes is sent to each page, and the reason when nothing can.

Invariant: a page that is closed costs nothing, pages of one study share its reading, and a look
takes no more than a fraction of the time between two.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import anyio
import anyio.to_thread
import redis
from starlette.responses import StreamingResponse

from orchestrator.dashboard.answers import encode, trouble
from workers.protocol.errors import FleetError

#: Between two looks, and how many times as long as a look took it is at least.
LOOK_SECONDS: Final = 0.5
_EASE: Final = 4.0

#: How often something is sent in any case, so that either side sees that the other is gone.
_SIGN_SECONDS: Final = 10.0

_HEADERS: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}

Look = Callable[[], dict[str, Any] | None]


def stream(look: Look, *, is_closing: Callable[[], bool]) -> StreamingResponse:
    """A response that goes on until the page is closed, or the server.

    Args:
        look: What is to be sent now, None for nothing; it may block.
        is_closing: Whether the server ends.
    """
    events = _events(look, is_closing)
    return StreamingResponse(events, headers=_HEADERS, media_type="text/event-stream")


async def _events(look: Look, is_closing: Callable[[], bool]) -> AsyncIterator[bytes]:
    sent_at, told = time.monotonic(), None
    yield b": hello\n\n"
    while not is_closing():
        began = time.monotonic()
        try:
            found, kind = await anyio.to_thread.run_sync(look), "news"
        except (FleetError, redis.RedisError, OSError) as error:
            found, kind = trouble(error), "trouble"
        if (kind == "news" and found is not None) or (kind == "trouble" and found != told):
            yield _event(kind, found)
            sent_at = time.monotonic()
        elif time.monotonic() - sent_at > _SIGN_SECONDS:
            yield b": still here\n\n"
            sent_at = time.monotonic()
        if kind == "news" and told is not None:
            yield _event("well", {})
        told = found if kind == "trouble" else None
        await anyio.sleep(max(LOOK_SECONDS, _EASE * (time.monotonic() - began)))


def _event(kind: str, document: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), encode(document))
