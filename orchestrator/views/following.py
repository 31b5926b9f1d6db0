"""Follows a study until it is over, also through a time in which nobody can tell how it stands.

Invariant: what was there once is waited for; a study that never was is refused at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

import redis

from orchestrator.status import StudyStatus
from workers.protocol.errors import InvalidInputError, RedisUnavailableError, StudyDeletedError
from workers.protocol.plain import describe_error

#: Between two looks at a study.
LOOK_SECONDS: Final = 0.5

_MAX_REASON: Final = 300


def follow(look: Callable[[], StudyStatus], *, patience_seconds: float) -> Iterator[StudyStatus]:
    """A study's status again and again, the last one when it is over.

    While Redis does not answer, it is the last one that was seen, with the reason as `stalled`.

    Args:
        look: Gives the status now.
        patience_seconds: How long a study that was there may be unknown: a Redis that lost its
            data gets it back from its orchestrator.

    Raises:
        InvalidInputError: The study is not known, or not any more.
        RedisUnavailableError: Redis does not answer, and has not before.
    """
    seen, seen_at = look(), time.monotonic()
    yield seen
    while not seen.is_over:
        time.sleep(LOOK_SECONDS)
        try:
            seen, seen_at = look(), time.monotonic()
            yield seen
        except StudyDeletedError:
            raise
        except InvalidInputError as error:
            if time.monotonic() - seen_at > patience_seconds:
                raise
            yield _without_news(seen, error)
        except (RedisUnavailableError, redis.RedisError) as error:
            seen_at = time.monotonic()
            yield _without_news(seen, error)


def _without_news(seen: StudyStatus, error: Exception) -> StudyStatus:
    reason = f"no news: {describe_error(error, _MAX_REASON)}; waiting for it"
    return seen.model_copy(update={"stalled": reason})
