"""The two bases of all managers: thread-local state, and state that only one process may use."""

from __future__ import annotations

import os
import threading
from typing import Any, NoReturn, Self

from workers.protocol.errors import ForeignProcessError

_WAY_OUT = "call ensure_process_initialized(config) at the start of this process"


class BaseManager:
    """A manager with state of its own for each thread, in `self.local`.

    A subclass names what it needs by the annotations of its constructor, and may override
    `open` and `close`; the container calls them in order and in reverse.
    """

    def __init__(self) -> None:
        self.local = threading.local()

    def open(self) -> None:
        """Take what this manager owns. Called once, after everything it needs is open."""

    def close(self) -> None:
        """Give it back. Called once, before anything it needs is closed."""

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class BaseProcessManager(BaseManager):
    """A manager that only the process that built it may use.

    Any public attribute, read in another process (after a fork), raises `ForeignProcessError`;
    so does an attempt to pickle the manager on its way to a spawned one.
    """

    def __init__(self) -> None:
        self._owner_pid = os.getpid()
        super().__init__()

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_") and os.getpid() != object.__getattribute__(self, "_owner_pid"):
            raise ForeignProcessError(
                f"{type(self).__name__}.{name} belongs to process"
                f" {object.__getattribute__(self, '_owner_pid')}, this is {os.getpid()}; {_WAY_OUT}"
            )
        return super().__getattribute__(name)

    def __reduce__(self) -> NoReturn:
        raise ForeignProcessError(
            f"{type(self).__name__} cannot be sent to another process; {_WAY_OUT}"
        )
