"""What goes on while torch compiles: told, counted, and done by one process at a time.

Invariant: a compilation that others wait for ends with its process, and so does their waiting.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from torch._dynamo.callback import callback_handler
from torch._dynamo.utils import counters

from workers.disk.cache_entry import Progress
from workers.disk.file_locks import FileLock, lock_file
from workers.logs import get_logger
from workers.protocol.errors import TrialInterrupt

log = get_logger(__name__)

#: Between two words that a compilation goes on.
_TELL_SECONDS: Final = 1.0

#: A compilation of which a compiler hangs counts as life no longer than this, nor is it waited for.
_LONGEST_SECONDS: Final = 3600.0

#: Between two looks whether another process still compiles.
_LOOK_SECONDS: Final = 0.1


class CompileWatch:
    """Tells of compilations while they go on, and counts them.

    A compilation occupies the training's thread, so that a thread of its own has to tell.

    Args:
        folder: Where the code is kept: of those who compile for it, the others find what the first
            one has built.
        tell: Told how long it has taken so far, waiting for others included.
    """

    def __init__(self, folder: Path, tell: Progress) -> None:
        self._lock_path = folder / ".compiling"
        self._tell = tell
        self._lock: FileLock | None = None
        self._since: float | None = None
        self._seconds = 0.0
        self._num_compilations = 0
        self._before = dict(_counts())
        self._is_interrupted = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="compile-watch", daemon=True)

    @property
    def seconds(self) -> float:
        """Of all compilations that are over, waiting for others included."""
        return self._seconds

    @property
    def num_built(self) -> int:
        """Graphs of which no code was kept."""
        return self._counted("fxgraph_cache_miss")

    def __enter__(self) -> None:
        callback_handler.register_start_callback(self._note_start)
        callback_handler.register_end_callback(self._note_end)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(ValueError):  # a reset has removed them
            callback_handler.remove_start_callback(self._note_start)
            callback_handler.remove_end_callback(self._note_end)
        log.info(
            "compiled",
            seconds=round(self._seconds, 1),
            compilations=self._num_compilations,
            graphs_built=self.num_built,
            graphs_from_cache=self._counted("fxgraph_cache_hit"),
        )

    def _counted(self, name: str) -> int:
        return _counts()[name] - self._before.get(name, 0)

    def _note_start(self, _: object) -> None:
        self._since = time.monotonic()
        with suppress(OSError):  # without locks, each builds its own
            while (lock := lock_file(self._lock_path, create=True)) is None:
                waited = time.monotonic() - self._since
                if self._is_interrupted or waited > _LONGEST_SECONDS:
                    return
                time.sleep(_LOOK_SECONDS)
            self._lock = lock

    def _note_end(self, _: object) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        if self._since is not None:
            self._seconds += time.monotonic() - self._since
        self._num_compilations += 1
        self._since = None

    def _watch(self) -> None:
        while not self._ended.wait(_TELL_SECONDS):
            since = self._since
            seconds = 0.0 if since is None else time.monotonic() - since
            if since is not None and seconds < _LONGEST_SECONDS:
                try:
                    self._tell("seconds of compiling the model", int(seconds), 0)
                except TrialInterrupt:  # is for the training's own thread to hear, which may wait
                    self._is_interrupted = True


def _counts() -> Mapping[str, int]:
    counts: Mapping[str, int] = counters["inductor"]
    return counts
