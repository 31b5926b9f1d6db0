"""A thread that makes the next items of an iterator while the one before is used.

Invariant: the thread ends with the block that it was started for, whatever ends that, and an error
in it is raised where the item was wanted.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from workers.logs import get_logger

log = get_logger(__name__)

T = TypeVar("T")

#: Items made ahead: one that is copied while one is used, and one more for when making one is slow.
_AHEAD: Final = 2

#: How long the end of a block waits for the item that is being made: a disk may hang, and what ends
#: the block may be in a hurry.
_JOIN_SECONDS: Final = 2.0


class Prefetch(Generic[T]):
    """Iterates in a thread of its own; a context manager.

    Args:
        make: Makes the iterator, in the thread, which alone uses it.
    """

    def __init__(self, make: Callable[[], Iterator[T]]) -> None:
        self._make = make
        self._changed = threading.Condition()
        self._ready: deque[T] = deque()
        self._is_over = False
        self._is_closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._changed:
            self._is_closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join(_JOIN_SECONDS)
        if self._thread.is_alive():
            log.warning(
                "prefetch_hangs", hint="the next batch is still being read; its disk may hang"
            )

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._is_over)
            if self._ready:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    def _run(self) -> None:
        try:
            self._fill()
        except BaseException as error:  # noqa: BLE001 - whoever waits for the item raises it
            self._error = error
        finally:
            with self._changed:
                self._is_over = True
                self._changed.notify_all()

    def _fill(self) -> None:
        for item in self._make():
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or len(self._ready) < _AHEAD)
                if self._is_closed:
                    return
                self._ready.append(item)
                self._changed.notify_all()
            del item  # or it would be held until the next one is made
