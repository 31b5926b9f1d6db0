"""The host agent: a bootstep in the worker's main process that watches the pool and cleans up.

Invariant: it reaps only tokens that a dead child of this very worker held, and kills only
processes of a dead child's session.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Final

import psutil
import redis
from celery import bootsteps

from workers.coordination.connection import connect, resolve_url
from workers.coordination.hints import Hints
from workers.coordination.identity import ProcessIdentity
from workers.coordination.process_registry import ProcessEntry, ProcessRecord, ProcessRegistry
from workers.coordination.scratch import remove_scratch
from workers.coordination.studies import Studies
from workers.logs import get_logger
from workers.protocol.states import ProcessKind
from workers.settings import Settings

log = get_logger(__name__)

#: Names the file whose existence tells the children of a worker that it shuts down.
DRAIN_FILE_VARIABLE: Final = "FLEET_DRAIN_FILE"

#: Between two looks at the children where the kernel cannot wake us.
_POLL_SECONDS: Final = 0.5


class HostAgent(bootsteps.StartStopStep):  # type: ignore[misc]
    """Registers this worker, watches its children, and cleans up after those that die."""

    requires: ClassVar[set[str]] = {"celery.worker.components:Hub"}

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._settings = Settings.from_environment()
        self._watched: dict[int, ProcessIdentity] = {}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        # before any child is started: they find it in their environment
        self._folder = Path(tempfile.mkdtemp(prefix="trialfleet-worker-"))
        os.environ[DRAIN_FILE_VARIABLE] = str(self._folder / "drain")

    @staticmethod
    def drain() -> None:
        """Tell the children to give their trials back; async-signal-safe."""
        with suppress(FileNotFoundError):
            Path(os.environ[DRAIN_FILE_VARIABLE]).touch()

    def start(self, worker: Any) -> None:
        """Register this worker and start to watch."""
        client = connect(self._settings)
        registry = ProcessRegistry(client, self._settings.times)
        record = ProcessRecord(
            registry,
            ProcessKind.MAIN,
            fields={
                "slots": worker.concurrency,
                "queues": sorted(worker.app.amqp.queues.consume_from),
            },
        )
        record.register()
        self._thread = threading.Thread(
            target=self._watch, args=(worker, client, registry, record), name="host-agent"
        )
        self._thread.daemon = True
        self._thread.start()

    def stop(self, _worker: Any) -> None:
        """Stop watching; the pool has ended before this."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=self._settings.times.beat)
        shutil.rmtree(self._folder, ignore_errors=True)

    terminate = stop

    def _watch(
        self, worker: Any, client: redis.Redis, registry: ProcessRegistry, record: ProcessRecord
    ) -> None:
        cleaner = Cleaner(client, registry, self._settings)
        beats_due = 0.0
        while not self._ended.wait(_POLL_SECONDS):
            try:
                self._look(worker, cleaner)
                beats_due += _POLL_SECONDS
                if beats_due >= self._settings.times.beat:
                    beats_due = 0.0
                    record.beat()
                if Path(os.environ[DRAIN_FILE_VARIABLE]).exists() and not self._is_draining:
                    self._is_draining = True
                    record.update(is_draining=True)
            except redis.RedisError as error:
                log.warning("registry_unreachable", error=str(error))
        with suppress(redis.RedisError):
            self._look(worker, cleaner, all_dead=True)
            record.gone()
            client.close()

    _is_draining = False

    def _look(self, worker: Any, cleaner: Cleaner, *, all_dead: bool = False) -> None:
        """Note new children, and clean up after those that are gone."""
        for process in list(getattr(worker.pool, "_pool", None) and worker.pool._pool._pool or ()):  # noqa: SLF001
            if process.pid is not None and process.pid not in self._watched:
                with suppress(ProcessLookupError):
                    self._watched[process.pid] = ProcessIdentity.of(process.pid)
        for pid, identity in list(self._watched.items()):
            if all_dead or not identity.is_alive():
                cleaner.clean_up_after(identity)
                del self._watched[pid]


class Cleaner:
    """Removes what a dead process of this host left: its lease, its session, its directories."""

    def __init__(self, client: redis.Redis, registry: ProcessRegistry, settings: Settings) -> None:
        self._registry = registry
        self._studies = Studies(client)
        self._hints = Hints(resolve_url(settings))
        self._settings = settings

    def clean_up_after(self, identity: ProcessIdentity) -> None:
        """End a dead child's session, remove its scratch directories, requeue its trial."""
        kill_session(identity.pid)
        entry = self._registry.find(identity)
        if entry is None:
            return
        log.info("process_died", died=identity.pid, study=entry.study, trial=entry.trial)
        if entry.study is not None:
            self._reap(entry, entry.study)
        for directory in entry.scratch:
            remove_scratch(directory)
        self._registry.gone(identity)

    def _reap(self, entry: ProcessEntry, study: str) -> None:
        if entry.trial is None or not self._studies.exists(study):
            return
        spec = self._studies.spec(study)
        leases = self._studies.leases(study)
        backoff = self._settings.times.backoff
        ended = leases.reap(
            entry.trial,
            f"process {entry.identity.pid} on {entry.identity.host} died",
            max_failures=spec.max_failures,
            backoff_seconds=backoff,
            dead_token=entry.token,
        )
        log.info("reaped", study=study, trial=entry.trial, ended=ended)
        if ended == "REQUEUED":
            self._hints.send(study, entry.trial, leases.epoch, spec.resources.queue, backoff)


def kill_session(leader_pid: int) -> None:
    """Kill what is left of the session that a dead process led; nothing else is touched."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if process.pid != leader_pid and os.getsid(process.pid) == leader_pid:
                process.send_signal(signal.SIGKILL)
