"""Whether this process is to give its trial back: its worker shuts down, or it got a SIGTERM.

Invariant: once given, the signal stands.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class DrainSignal:
    """Set by a file that the worker's main process makes, or by a SIGTERM to this one.

    Args:
        file: A file whose existence means that this worker shuts down.
    """

    def __init__(self, file: str) -> None:
        self._file = file
        self._is_terminated = False
        #: Celery's handler, while a trial runs
        self._outer_sigterm: Any = None
        #: one object, which is told from the handlers that an objective sets
        self._handler = self._on_sigterm

    def is_set(self) -> bool:
        """Whether to drain; cheap enough for every training step."""
        return self._is_terminated or os.path.exists(self._file)  # noqa: PTH110

    @contextmanager
    def set_by_sigterm(self) -> Iterator[None]:
        """Take a SIGTERM that is meant for this process alone, or for all, as a drain.

        Celery's own handler would throw `SystemExit` into the training at once, wherever it is.
        It has its way when the trial has been given back, or with a second signal.
        """
        before = signal.getsignal(signal.SIGTERM)
        self._outer_sigterm = before
        signal.signal(signal.SIGTERM, self._handler)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
            if self._is_terminated:
                signal.raise_signal(signal.SIGTERM)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        if self._is_terminated and callable(self._outer_sigterm):
            self._outer_sigterm(number, frame)
        self._is_terminated = True
