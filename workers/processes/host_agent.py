"""The host agent: a bootstep in the worker's main process that watches the pool and cleans up.

Invariant: while the pool runs, the agent does; an agent that fails stops the worker.
"""

from __future__ import annotations

import multiprocessing.util
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import billiard.process
import redis
from celery import bootsteps
from celery.exceptions import WorkerShutdown

from workers.coordination.connection import await_connection, describe_trouble, name_missing
from workers.coordination.device_marks import DeviceMarks
from workers.coordination.rights import Role
from workers.disk.fleet_home import FleetHome, make_home
from workers.disk.scratch import (
    make_scratch,
    name_scratch,
    redirect_temporary_files,
    remove_scratch,
    remove_stale_scratch,
)
from workers.disk.shared_memory import remove_own_semaphores, semaphore_prefix
from workers.logs import get_logger
from workers.metrics_endpoint import metrics_served
from workers.processes.child_watch import ChildWatch
from workers.processes.cleaner import Cleaner
from workers.processes.gpu_slots import device_name, take_gpus
from workers.processes.membership import celery_of, membership
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.processes.semaphore_tracker import replace_killed_tracker
from workers.processes.uploader import Uploader
from workers.protocol.errors import InvalidInputError
from workers.protocol.states import ProcessKind
from workers.settings import Settings, mistyped_variables
from workers.wandb_run import mode

if TYPE_CHECKING:
    from workers.processes.worker_metrics import WorkerMetrics

log = get_logger(__name__)

#: Names the file whose existence tells the children of a worker that it shuts down.
DRAIN_FILE_VARIABLE: Final = "FLEET_DRAIN_FILE"

#: The exit code of a worker that was told to end a second time.
EXIT_AT_ONCE: Final = 128 + signal.SIGTERM

#: The exit code of a worker that must not start where it was told to.
EXIT_REFUSED: Final = 2

#: The exit code of a worker that stopped because something in it failed; never that of a drain.
EXIT_FAILED: Final = 70

#: How long cleaning up may take then.
_AT_ONCE_SECONDS: Final = 3.0

#: How long a pool that drains may stay when no trial is left in it: longer than its last W&B run
#: takes.
_STUCK_SECONDS: Final = 25.0
_LEAST_STUCK_SECONDS: Final = 5.0  # whatever the scale of time: a pool process takes one to end

_WANDB_HINT: Final = (
    "neither WANDB_API_KEY nor a netrc entry nor WANDB_MODE; a study gets runs all the same that"
    " says `wandb: offline`, or `wandb: {mode: online, ...}`"
)

#: Between two looks for new children; a death is told by the kernel.
_LOOK_SECONDS: Final = 0.5


def failure_file(drain_file: Path) -> Path:
    """The file by which a pool process says that the worker stops for its sake."""
    return drain_file.with_name("failed")


class HostAgent(bootsteps.StartStopStep):
    """Registers this worker, watches its children, and cleans up after those that die."""

    requires: ClassVar[set[str]] = {"celery.worker.components:Hub"}

    #: The agent of this process, for its signal handlers.
    current: ClassVar[HostAgent | None] = None

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        worker.host_agent = HostAgent.current = self
        self._worker = worker
        self._ends_at_once = False
        self._is_draining = False
        self._signalled: set[int] = set()
        self._has_failed = False
        self._trouble: str | None = None
        self._idle_since: float | None = None
        self._counted: Counter[str] = Counter()
        self._settings = Settings.from_environment()
        for variable, meant in mistyped_variables().items():
            log.warning("variable_not_known", variable=variable, meant=meant)
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        stale = remove_stale_scratch()
        if stale:
            log.info("stale_scratch_removed", directories=len(stale))
        self._record = ProcessRecord(kind=ProcessKind.MAIN)
        # the pool's semaphores, by names that the cleaner can tell from those of strangers
        billiard.process.current_process()._config["semprefix"] = semaphore_prefix(os.getpid())
        replace_killed_tracker()
        # before any child is started: they find it in their environment
        self._folder = name_scratch(self._record.identity)
        with _refusing():
            self._settings.check_worker()
            self._gpus = take_gpus(worker.concurrency, self._settings.times.beat)
            make_scratch(self._folder)
        redirect_temporary_files(self._folder)
        # after multiprocessing, at -100, has removed its own directory in there
        multiprocessing.util.Finalize(
            None, remove_scratch, [self._folder, self._record.identity], exitpriority=-200
        )
        os.environ[DRAIN_FILE_VARIABLE] = str(self._folder / "drain")

    def drain(self) -> None:
        """Tell the children to give their trials back; the second time, end all at once.

        To be called by a signal handler.
        """
        if self._is_draining:
            self._end_at_once()
        self._is_draining = True
        with suppress(OSError):  # the agent's thread sees to it then
            self._drain_file.touch()

    def _end_at_once(self) -> None:
        """Kill the pool and clean up after it, without waiting for anything else."""
        for pid in _pool_pids(self._worker):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._ends_at_once = True
        self._ended.set()
        # should Redis not answer, the leases end by themselves
        last = threading.Timer(_AT_ONCE_SECONDS, _exit_at_once)
        last.daemon = True
        last.start()

    def start(self, worker: Any) -> None:
        """Register this worker and start to watch."""
        with _refusing():
            client = await_connection(self._settings, Role.WORKER, lambda: self._is_draining)
            if client is None:
                raise WorkerShutdown(0)  # told to end before there was anything to do
            make_home(self._settings.home)
            FleetHome(client, self._settings.home).join()
        for gpu in self._gpus:
            DeviceMarks(client, device_name(gpu)).clear()
        if not self._gpus:
            log.info("no_gpu", hint="this worker's trials run on the CPU")
        if mode() == "disabled":
            log.info("wandb_off", hint=_WANDB_HINT)
        with _refusing():
            uploader = Uploader(client, self._settings)
            uploader.check_store()
        registry = ProcessRegistry(client, self._settings.times)
        fields = {
            "slots": worker.concurrency,
            "queues": sorted(worker.app.amqp.queues.consume_from),
            "scratch": [str(self._folder)],
            **membership(self._settings, celery_of(worker)),
        }
        self._record = ProcessRecord(registry, ProcessKind.MAIN, fields=fields)
        self._record.register()
        self._thread = threading.Thread(
            target=self._watch_or_stop,
            args=(worker, client, registry, uploader),
            name="host-agent",
            daemon=True,
        )
        self._thread.start()

    def stop(self, _worker: Any) -> None:
        """Nothing yet: Celery stops the steps before it drains the pool."""

    terminate = stop

    def finish(self) -> None:
        """Stop watching, when the pool has ended. Safe to call twice."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=self._settings.times.beat)

    @property
    def exit_code(self) -> int | None:
        """What this worker is to exit with, if something but a drain ended it."""
        if self._has_failed or failure_file(self._drain_file).exists():
            return EXIT_FAILED
        return None

    @property
    def _drain_file(self) -> Path:
        return self._folder / "drain"

    def _watch_or_stop(
        self, worker: Any, client: redis.Redis, registry: ProcessRegistry, uploader: Uploader
    ) -> None:
        try:
            with uploader, metrics_served(self._settings, lambda: self._metrics(uploader)):
                self._watch(worker, client, registry, uploader)
            client.close()
            if self._ends_at_once:
                remove_scratch(self._folder, self._record.identity)
                _exit_at_once()
        except Exception:
            log.exception("host_agent_failed", hint="the worker stops: nobody would clean up")
            self._has_failed = True
            os.kill(os.getpid(), signal.SIGTERM)

    def _metrics(self, uploader: Uploader) -> WorkerMetrics:
        # its package is there only where metrics are asked for
        from workers.processes.worker_metrics import WorkerMetrics

        return WorkerMetrics(
            self._worker.concurrency, self._gpus, uploader, self._standing, self._counted
        )

    def _standing(self) -> Mapping[str, int]:
        """How this worker stands, for its metrics."""
        return {
            "draining": self._is_draining,
            "redis_up": self._trouble is None,
            "setbacks": len(self._record.stalled),
        }

    def _watch(
        self, worker: Any, client: redis.Redis, registry: ProcessRegistry, uploader: Uploader
    ) -> None:
        watch, cleaner = ChildWatch(), Cleaner(client, registry, self._settings)
        beat_at = -self._settings.times.beat  # the first beat is due at once
        while not self._ended.is_set():
            for pid in _pool_pids(worker):
                watch.add(pid)
            self._tell_pool(worker)
            ended = watch.wait(_LOOK_SECONDS)
            if ended:
                self._counted["pool_processes_ended"] += 0 if self._is_draining else len(ended)
                _replace_children(worker)
            try:
                for identity in ended:
                    cleaner.clean_up_after(identity)
                self._tell_drain()
                self._end_if_stuck(registry)
                if time.monotonic() - beat_at >= self._settings.times.beat:
                    beat_at = time.monotonic()
                    self._record.beat()
                    self._counted["beats"] += 1
                    cleaner.sweep_host()
                    self._tell_rights(client)
                    self._show_stalled(cleaner.setbacks() + uploader.setbacks())
            except redis.RedisError as error:
                # leases and records run out by themselves
                self._tell_trouble(describe_trouble(error, client, Role.WORKER, self._settings))
        with suppress(redis.RedisError):
            self._clean_up_after_last(watch, cleaner)
            cleaner.sweep_host(is_last=True)
            self._record.gone()
        watch.close()
        cleaner.close()

    def _tell_rights(self, client: redis.Redis) -> None:
        """Say what this worker's user lacks now, also where Celery alone is refused it."""
        self._tell_trouble(name_missing(client, Role.WORKER, self._settings))

    def _show_stalled(self, setbacks: list[str]) -> None:
        """Show in the registry what cannot be done for now."""
        stalled = [*filter(None, [self._trouble]), *setbacks]
        if stalled != self._record.stalled:
            self._record.update(stalled=stalled)

    def _tell_trouble(self, trouble: str | None) -> None:
        """Say what is wrong with Redis, once until it is well again."""
        if trouble is not None and trouble != self._trouble:
            log.warning("redis_lost", error=trouble, hint="waiting for it to come back")
        self._trouble = trouble

    def _clean_up_after_last(self, watch: ChildWatch, cleaner: Cleaner) -> None:
        """See to the last children: a pool that drained has ended, one that was killed will."""
        deadline = time.monotonic() + (_AT_ONCE_SECONDS / 2 if self._ends_at_once else 0.0)
        while True:
            for identity in watch.wait(min(_LOOK_SECONDS, max(0.0, deadline - time.monotonic()))):
                cleaner.clean_up_after(identity)
            if not watch.is_watching or time.monotonic() >= deadline:
                return

    def _tell_pool(self, worker: Any) -> None:
        """Tell the children of a drain by signal where the file that says so cannot be made.

        The disk may be full, or somebody may have tidied up /tmp.
        """
        if not self._is_draining or (self._folder / "drain").exists():
            return
        for pid in set(_pool_pids(worker)) - self._signalled:
            log.warning("drain_file_not_made", folder=str(self._folder), signalled=pid)
            self._signalled.add(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def _tell_drain(self) -> None:
        """Show in the registry that this worker takes no more trials."""
        if not self._record.is_draining and self._is_draining:
            self._record.update(is_draining=True)

    def _end_if_stuck(self, registry: ProcessRegistry) -> None:
        """End a worker that drains, has nothing left to drain, and does not end."""
        own = os.getpid()
        if not self._record.is_draining or any(
            entry.parent == own and entry.study is not None for entry in registry.entries()
        ):
            self._idle_since = None
            return
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        patience = max(_LEAST_STUCK_SECONDS, _STUCK_SECONDS * self._settings.time_scale)
        if now - self._idle_since > patience:
            log.warning("pool_stuck", hint="ending it: no trial is left in it")
            self._end_at_once()


def _exit_at_once() -> None:
    """End without what Python does at an exit, where multiprocessing removes its semaphores."""
    remove_own_semaphores()
    os._exit(EXIT_AT_ONCE)


@contextmanager
def _refusing() -> Iterator[None]:
    """End a worker that must not start here with one line that says why."""
    try:
        yield
    except InvalidInputError as error:
        log.error("worker_refused", error=str(error))  # noqa: TRY400 - told to a user
        raise SystemExit(EXIT_REFUSED) from None


def _replace_children(worker: Any) -> None:
    """Have Celery replace the children that ended, now.

    It listens to a pipe that a dying child closes an instant before the child can be waited for,
    so that a busy one's end is often missed, until the pool's next look, up to 5 s later.
    """
    worker.hub.call_soon(worker.pool.maintain_pool)  # kombu's is safe from any thread


def _pool_pids(worker: Any) -> list[int]:
    """The pids of the pool's processes now; Celery has no public way to ask."""
    pool = getattr(getattr(worker, "pool", None), "_pool", None)
    processes = list(getattr(pool, "_pool", ()))
    return [process.pid for process in processes if process.pid is not None]
