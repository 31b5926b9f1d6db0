"""Asks a server that does not answer again, later and later, and not for ever.

Invariant: what is wrong fails at once; what will pass is never told as wrong.
"""

from __future__ import annotations

import contextvars
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from workers.logs import get_logger
from workers.protocol.errors import RemoteUnavailableError, TransientError
from workers.remote.faults import first_cause, wanted_pause, will_pass

log = get_logger(__name__)

T = TypeVar("T")

#: Tries in all, before the slot is given to somebody else.
_TRIES: Final = 4

#: A pause is drawn from around its length, so that a fleet does not come back all at once.
_JITTER: Final = 0.25

#: Between two words of who waits, which may end the waiting: a drain is not to wait for a hub.
_TOLD_EVERY_SECONDS: Final = 0.2

#: For so many pauses, 5 minutes, nothing may arrive of what is waited for aside. A hub's library
#: ends a silent connection within 2, but waits for a lock or a disk for ever.
_STILL_PAUSES: Final = 300

#: Told what is asked again for, which try it is, and of how many. What it raises ends the waiting.
Watch = Callable[[str, int, int], None]


def unwatched(_what: str, _count: int, _tries: int) -> None:
    """Tell nobody."""


#: A server that wants a longer pause than this is left to a later attempt.
_LONGEST_PAUSES: Final = 8


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a server is waited for.

    Args:
        pause_seconds: Before the second try; doubled with each.
    """

    pause_seconds: float = 1.0

    def ask(self, what: str, call: Callable[[], T], watch: Watch = unwatched) -> T:
        """What a call returns, made again while its error is one that will pass.

        Args:
            what: What is read, for people, such as `data.source = 'hub:owner/name'`.
            call: May be made several times.
            watch: Told again and again while it waits; what it raises ends that.

        Raises:
            RemoteUnavailableError: The server did not answer, whatever we tried.
        """
        for count in range(_TRIES):
            try:
                return call()
            except TransientError:
                raise  # who said so has waited already
            except Exception as error:
                if not will_pass(error):
                    raise
                pause = max(self.pause_seconds * 2**count, wanted_pause(error))
                is_too_long = pause > self.pause_seconds * _LONGEST_PAUSES
                if count + 1 == _TRIES or is_too_long:
                    raise _unavailable(what, error) from error
                pause *= random.uniform(1 - _JITTER, 1 + _JITTER)
                log.warning(
                    "remote_not_answering",
                    what=what,
                    error=first_cause(error),
                    retry_seconds=round(pause, 1),
                )
            _rest(pause, partial(watch, f"tries to read {what}", count + 1, _TRIES))
        raise AssertionError  # the last try has returned or raised

    def ask_aside(
        self,
        what: str,
        call: Callable[[], T],
        arrived: Callable[[], object],
        watch: Watch = unwatched,
    ) -> T:
        """As `ask`, of a call that may wait for long by itself: it is made in a thread of its own.

        Args:
            what: As for `ask`.
            call: Likewise; it may go on when nobody waits for it any more.
            arrived: What there is so far of what it waits for: another thing whenever it has come
                on. Where that stands still for 300 pauses, nobody waits any longer.
            watch: As for `ask`.

        Raises:
            RemoteUnavailableError: The server did not answer, or nothing arrives any more.
        """
        return self.ask(what, lambda: self._wait_aside(what, call, arrived, watch), watch)

    def _wait_aside(
        self, what: str, call: Callable[[], T], arrived: Callable[[], object], watch: Watch
    ) -> T:
        answer = _answer_aside(call)
        still_seconds = _STILL_PAUSES * self.pause_seconds
        known, still_since = arrived(), time.monotonic()
        while True:
            try:
                return answer.result(_TOLD_EVERY_SECONDS)
            except TimeoutError:
                if answer.done():
                    return answer.result()
            # this counts as progress, and so must have an end
            watch(f"files fetched for {what}", 0, 0)
            now = arrived()
            if now != known:
                known, still_since = now, time.monotonic()
            elif time.monotonic() - still_since > still_seconds:
                stood = f"nothing of it arrived for {still_seconds:.1f} s"
                raise RemoteUnavailableError(f"{what} cannot be read for now: {stood}")


def _answer_aside(call: Callable[[], T]) -> Future[T]:
    """What a call will return, made in a thread of its own."""
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            answer.set_exception(error)

    # a daemon: a process that ends does not wait for it
    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), name="remote", daemon=True).start()
    return answer


def _rest(seconds: float, watch: Callable[[], None]) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        watch()
        time.sleep(min(left, _TOLD_EVERY_SECONDS))


def _unavailable(what: str, error: Exception) -> RemoteUnavailableError:
    problem = RemoteUnavailableError(f"{what} cannot be read for now: {first_cause(error)}")
    problem.pause_seconds = wanted_pause(error)
    return problem
