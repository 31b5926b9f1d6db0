"""WandbManager: one W&B run a trial, grouped by study, resumed by the next attempt.

Invariant: W&B never fails, slows down or outlives a trial: all of it happens in one thread, and
what goes wrong there is logged. Where nobody asked for it, it is not even imported.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from workers.logs import get_logger
from workers.managers.base import BaseProcessManager
from workers.managers.run_directories import DirectoryManager
from workers.passwords import hide_in
from workers.protocol.study_options import WandbSpec
from workers.wandb_run import mode, start_run

log = get_logger(__name__)

#: Points of curves that wait for a W&B that is slow or away; further ones are dropped.
MAX_WAITING: Final = 10_000

#: How long the end of a process waits for its last run to be written.
_CLOSE_SECONDS: Final = 20.0


@dataclass
class _Announced:
    """The trial that what is logged now belongs to."""

    study: str
    number: int
    params: Callable[[], Mapping[str, Any]]
    attempt: int
    asked: WandbSpec | None
    generation: str | None = None
    has_begun: bool = False
    """Whether its run was asked for."""


class WandbManager(BaseProcessManager):
    """Starts, feeds and finishes runs, in the order of the calls, without making them wait."""

    def __init__(self, directories: DirectoryManager) -> None:
        super().__init__()
        self._directories = directories
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._trial: _Announced | None = None
        self._run: Any = None
        self._num_dropped = 0

    def open(self) -> None:
        """Load the library while the other managers open, where each trial is to have a run."""
        if mode() != "disabled":
            self._prepare()

    def close(self) -> None:
        """Finish a run that is still open, and wait for what is left to be written."""
        if self._thread is not None:
            self.finish(1)
            self._jobs.put(None)
            self._thread.join(_CLOSE_SECONDS)
            self._thread = None

    def start(
        self,
        study: str,
        number: int,
        params: Callable[[], Mapping[str, Any]],
        attempt: int,
        asked: WandbSpec | None = None,
        generation: str | None = None,
    ) -> None:
        """Say which trial begins: its run starts with what it logs first, or else at its end.

        Does nothing while another one goes on, and where the trial is to have no run.

        Args:
            study: Becomes the run's group.
            number: The trial's number.
            params: Asked for what the trial has drawn, when its run starts and when it ends.
            attempt: From 1.
            asked: What the study says of W&B.
            generation: Tells the study from a deleted one of its name.
        """
        if self._trial is None and mode(asked) != "disabled":
            self._prepare()
            self._trial = _Announced(study, number, params, attempt, asked, generation)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log values at a step of the training; dropped where W&B is far behind."""
        if self._trial is None:
            return
        self._begin(self._trial)
        if self._jobs.qsize() > MAX_WAITING:
            self._num_dropped += 1
            return
        copied = dict(values)
        self._put(lambda: self._log(copied, step))

    def begin(self) -> Any:
        """The trial's run, begun by now; None where it has none, or W&B does not answer in time."""
        if self._trial is None:
            return None
        self._begin(self._trial)
        return self._run if self.flush() else None

    def finish(self, exit_code: int = 0) -> None:
        """Finish the trial's run, if it is to have one; 0 is success.

        A run that its objective opened by itself, and left open, would be the next trial's, too.
        """
        trial, self._trial = self._trial, None
        if trial is not None:
            self._begin(trial)
            drawn = dict(trial.params())
            self._put(lambda: self._finish(exit_code, drawn))
        if _open_run() is not None:
            self._prepare()
            self._put(lambda: _finish_others(exit_code))

    @property
    def has_run(self) -> bool:
        """Whether a run is to be finished when the trial has ended."""
        return self._trial is not None or _open_run() is not None

    def _begin(self, trial: _Announced) -> None:
        if not trial.has_begun:
            trial.has_begun = True
            config = {**trial.params(), "trial": trial.number, "attempt": trial.attempt}
            self._put(lambda: self._start(trial, hide_in(config)))

    def _prepare(self) -> None:
        """Start the thread, which loads the library first."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
            self._thread.start()

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

    def _start(self, trial: _Announced, config: dict[str, Any]) -> None:
        self._run = None
        self._run = start_run(
            self._directories.home,
            trial.study,
            trial.number,
            config,
            trial.asked,
            trial.generation,
        )

    def _log(self, values: dict[str, float], step: int) -> None:
        if self._run is not None:
            self._run.log(values, step=step)

    def _finish(self, exit_code: int, drawn: dict[str, Any]) -> None:
        run, self._run = self._run, None
        if self._num_dropped:
            log.warning("wandb_points_dropped", points=self._num_dropped, hint="W&B is too slow")
            self._num_dropped = 0
        if run is not None:
            started = time.perf_counter()
            later = {name: each for name, each in hide_in(drawn).items() if name not in run.config}
            if later:
                run.config.update(later)
            run.finish(exit_code=exit_code)
            log.debug("wandb_finished", seconds=round(time.perf_counter() - started, 3))


def _open_run() -> Any:
    """The run that W&B takes for this process's, if there is one."""
    wandb = sys.modules.get("wandb")
    return getattr(wandb, "run", None)


def _finish_others(exit_code: int) -> None:
    run = _open_run()
    if run is not None:
        log.warning("wandb_run_left", run=run.id, hint="the fleet's own: trial.wandb_run()")
        run.finish(exit_code=exit_code)


def _load() -> None:
    import wandb

    # starts the service process, so that the first run does not wait for it
    wandb.setup()
