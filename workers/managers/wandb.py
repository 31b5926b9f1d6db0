"""WandbManager: one W&B run a trial, grouped by study, resumed by the next attempt.

Invariant: W&B never fails, slows down or outlives a trial: all of it happens in one thread, and
what goes wrong there is logged.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from workers.logs import get_logger
from workers.managers.base import BaseProcessManager
from workers.managers.run_directories import DirectoryManager
from workers.wandb_run import mode, start_run

log = get_logger(__name__)

#: Points of curves that wait for a W&B that is slow or away; further ones are dropped.
MAX_WAITING: Final = 10_000

#: How long the end of a process waits for its last run to be written.
_CLOSE_SECONDS: Final = 20.0


class WandbManager(BaseProcessManager):
    """Starts, feeds and finishes runs, in the order of the calls, without making them wait."""

    def __init__(self, directories: DirectoryManager) -> None:
        super().__init__()
        self._directories = directories
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._run: Any = None
        self._is_started = False
        self._num_dropped = 0

    def open(self) -> None:
        """Load the library while the other managers open."""
        if mode() != "disabled":
            self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Finish a run that is still open, and wait for what is left to be written."""
        if self._thread is not None:
            self.finish(1)
            self._jobs.put(None)
            self._thread.join(_CLOSE_SECONDS)
            self._thread = None

    def start(self, study: str, number: int, params: Mapping[str, Any], attempt: int) -> None:
        """Start the run of a trial, or go on with the one of an earlier attempt.

        Does nothing while a run is open.

        Args:
            study: Becomes the run's group.
            number: The trial's number.
            params: Become the run's configuration.
            attempt: From 1.
        """
        if not self._is_started:
            self._is_started = True
            config = {**params, "trial": number, "attempt": attempt}
            self._put(lambda: self._start(study, number, config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log values at a step of the training; dropped where W&B is far behind."""
        if self._jobs.qsize() > MAX_WAITING:
            self._num_dropped += 1
            return
        copied = dict(values)
        self._put(lambda: self._log(copied, step))

    def finish(self, exit_code: int = 0) -> None:
        """Finish the run, if one is open; 0 is success."""
        self._is_started = False
        self._put(lambda: self._finish(exit_code))

    def flush(self, timeout_seconds: float = _CLOSE_SECONDS) -> bool:
        """Wait until all that was asked so far is done; False if it took too long."""
        if self._thread is None:
            return True
        done = threading.Event()
        self._put(done.set)
        return done.wait(timeout_seconds)

    def _put(self, job: Callable[[], None]) -> None:
        if self._thread is not None:
            self._jobs.put(job)

    def _work(self) -> None:
        self._attempt(_load)
        while (job := self._jobs.get()) is not None:
            self._attempt(job)

    def _attempt(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:  # noqa: BLE001 - no trial is worth less than its curve
            log.warning("wandb_failed", error=f"{type(error).__name__}: {error}")

    def _start(self, study: str, number: int, config: dict[str, Any]) -> None:
        self._run = None
        self._run = start_run(self._directories.home, study, number, config)

    def _log(self, values: dict[str, float], step: int) -> None:
        if self._run is not None:
            self._run.log(values, step=step)

    def _finish(self, exit_code: int) -> None:
        run, self._run = self._run, None
        if self._num_dropped:
            log.warning("wandb_points_dropped", points=self._num_dropped, hint="W&B is too slow")
            self._num_dropped = 0
        if run is not None:
            started = time.perf_counter()
            run.finish(exit_code=exit_code)
            log.debug("wandb_finished", seconds=round(time.perf_counter() - started, 3))


def _load() -> None:
    import wandb

    # starts the service process, so that the first run does not wait for it
    wandb.setup()
