"""A real fleet for benchmarks: Redis, `trialfleet serve`, a `celery worker`, and short trainings.

What dies is started again by `revive`, as a service manager would, and nothing else is done.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import psutil
import redis
from counted import STEPS_VARIABLE

from orchestrator.handle import StudyHandle
from orchestrator.local.servers import EmbeddedRedis, LocalWorker, start_process, stop_process
from orchestrator.status import StudyStatus
from orchestrator.submission.study import Study
from workers.settings import Settings

#: Between two checkpoints of a trial.
CHECKPOINT_SECONDS: Final = 0.5

OBJECTIVE: Final = f"{Path(__file__).with_name('counted.py')}:objective"


def make_study(name: str, trials: int, *, epochs: int = 4) -> Study:
    """Short trials of some seconds, with a checkpoint every half second."""
    return Study(
        OBJECTIVE,
        name=name,
        direction="maximize",
        metric="accuracy",
        trials=trials,
        max_losses=1000,  # here a loss is a kill, and no fault of the trial
        sampler={"type": "random", "seed": 1},
        space={
            "learning_rate": {"type": "float", "low": 1e-3, "high": 4e-3, "log": True},
            "loader_workers": {"type": "categorical", "choices": [0, 1]},
        },
        config={
            "data": {"source": "cldr-language-id", "max_length": 32},
            "tokenizer": {"vocab_size": 1000},
            "model": {"architecture": "bert", "hidden_size": 32, "num_hidden_layers": 1},
            "batch_size": 64,
            "epochs": epochs,
            "checkpoint_interval_seconds": CHECKPOINT_SECONDS,
            "save_model": "none",
        },
    )


class BenchFleet:
    """One fleet under a home of its own, whose members are started again when they die."""

    def __init__(
        self,
        home: Path,
        *,
        slots: int = 2,
        time_scale: float = 1.0,
        objective: str = OBJECTIVE,
        log_level: Literal["debug", "info"] = "debug",
        metrics_port: int | None = None,
    ) -> None:
        self.redis = EmbeddedRedis(home)
        # of its own, and short: sockets are made there
        self.temporary = Path(tempfile.mkdtemp(prefix="trialfleet-"))
        self.steps = home / "steps"
        self.settings = Settings(
            redis_url=self.redis.url,
            home=home,
            cache=home / "cache",
            slots=slots,
            objectives=(objective.rpartition(":")[0],),
            time_scale=time_scale,
            log_level=log_level,
            metrics_port=metrics_port,
        )
        self.environment = {
            **os.environ,
            **self.settings.to_environment(),
            "TMPDIR": str(self.temporary),
            STEPS_VARIABLE: str(self.steps),
        }
        self.worker = LocalWorker(self.environment, home / "logs" / "worker.log")
        self.orchestrator: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start all."""
        self.steps.mkdir(parents=True)
        self.redis.start()
        self.worker.start()
        self._start_orchestrator()

    def revive(self) -> None:
        """Start again what has died."""
        with suppress(Exception):  # killed while it starts: the next time then
            self.redis.revive()
        if self.worker.poll() is not None:
            self.worker.start()
        if self.orchestrator is not None and self.orchestrator.poll() is not None:
            self._start_orchestrator()

    def stop(self) -> None:
        """Drain, in the order that a service manager would."""
        self.worker.stop(60.0)
        if self.orchestrator is not None:
            stop_process(self.orchestrator, signal.SIGTERM, 20.0)
        self.redis.stop()

    def candidates(self) -> dict[str, list[int]]:
        """The processes that may be killed now, by kind."""
        assert self.orchestrator is not None  # noqa: S101 - it was started
        main = self.worker.pid
        found = {
            "main": [main],
            "orchestrator": [self.orchestrator.pid],
            "redis": [self.redis.pid],
            "child": [],
            "loader": [],
            "other": [],
        }
        for parent in (main, self.orchestrator.pid):
            with suppress(psutil.Error):
                for process in psutil.Process(parent).children(recursive=True):
                    found[_kind(" ".join(process.cmdline()))].append(process.pid)
        return found

    def wait(self, name: str, seconds: float | None = None) -> StudyStatus:
        """Keep the fleet up until the study is over or the time is; its status then."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            self.revive()
            with suppress(redis.RedisError, Exception):
                status = StudyHandle(name, self.settings).status()
                if status.is_over or (deadline is not None and time.monotonic() > deadline):
                    return status
            time.sleep(0.5)

    def _start_orchestrator(self) -> None:
        log = self.settings.home / "logs" / "orchestrator.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            self.orchestrator = start_process(
                [sys.executable, "-m", "orchestrator.cli", "serve"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                output=sink,
            )


def _kind(command: str) -> str:
    """Which kind of process a fleet's member has started, by its command line."""
    if "billiard.spawn" in command:
        return "child"
    if "multiprocessing.spawn" in command or "fork_server" in command:
        return "loader"
    return "other"  # such as those that remove semaphores, and those of samplers and W&B
