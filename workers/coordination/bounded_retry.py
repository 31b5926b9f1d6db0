"""Trying a command of Redis again, for as long as it serves who waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from redis.retry import Retry

#: No attempt begins later than so after the first.
RETRY_WITHIN_SECONDS: Final = 15.0

#: What this thread is trying, since when. Not of a `Retry`: redis-py copies it for each connection.
_trying = threading.local()


class BoundedRetry(Retry):
    """Tries again as `redis.retry.Retry` does, and not for longer than `RETRY_WITHIN_SECONDS`.

    redis-py retries a command, in it the connecting, and in that its handshake: with a server that
    accepts and says nothing, three retries of ten seconds each would come to minutes.
    """

    def call_with_retry(
        self, do: Callable[[], Any], fail: Callable[..., Any], *args: Any, **options: Any
    ) -> Any:
        """What `do` returns, at last; `fail` is told each error.

        Raises:
            redis.RedisError: The last one, if there is no more time or attempt.
        """
        with _began() as began:

            def fail_and_give_up_late(error: Exception, *count: int) -> None:
                fail(error, *count)
                if time.monotonic() - began > RETRY_WITHIN_SECONDS:
                    raise error

            return super().call_with_retry(do, fail_and_give_up_late, *args, **options)


@contextmanager
def _began() -> Iterator[float]:
    """When the outermost of what this thread is trying began."""
    outer = getattr(_trying, "began", None)
    if outer is not None:
        yield outer
        return
    _trying.began = time.monotonic()
    try:
        yield _trying.began
    finally:
        _trying.began = None
