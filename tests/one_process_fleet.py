"""A fleet in one process: the real orchestrator in a thread, the real runner in this one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Self, TypeVar

import optuna
from waiting import wait_until

from orchestrator.driving.service import Service
from orchestrator.handle import StudyHandle
from workers.containers import Container
from workers.coordination import keys
from workers.coordination.inbox import Inbox
from workers.coordination.studies import Studies, ensure_epoch
from workers.managers import MANAGERS
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.messages import RunTrial
from workers.protocol.spec import StudySpec
from workers.protocol.states import ProcessKind
from workers.trials.runner import TrialRunner

T = TypeVar("T")


class OneProcessFleet:
    """An orchestrator that never stops, and one slot whose trials run in the test's thread.

    Args:
        client: The fleet's Redis, empty.
        server: The same.
        config: The settings of both sides; `objectives` is what may be imported.
        folder: Where a drain would be asked for.
        only: The one study that is driven; by default all.
        worker: Settings of the worker, where they are others.
    """

    def __init__(
        self, client, server, config, folder, only: str | None = None, worker=None
    ) -> None:
        self.client = client
        self.config = config
        ensure_epoch(client)
        self.studies = Studies(client, seal=config.seal)
        registry = ProcessRegistry(client, config.times.scaled(1e4))
        slots = {"slots": 1, "queues": ["default"]}
        main = ProcessRecord(registry, ProcessKind.MAIN, fields=slots)
        main.identity = main.identity._replace(pid=1)
        main.register()
        worker_config = worker or config
        self.container = Container(MANAGERS, [worker_config, ProcessRecord()])
        self.service = Service(config, only=only)
        self.runner = TrialRunner(
            client=client,
            redis_url=server.url,
            settings=worker_config,
            container=self.container.open(),
            record=ProcessRecord(),
            drain_file=str(folder / "drain"),
        )
        self.stopped: list[BaseException] = []
        self._ended, self._turning = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        self.runner.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.runner.__exit__()
        self._ended.set()
        self._thread.join()
        self.container.close()
        assert self.stopped == [], "the orchestrator never stops"

    def run_studies(
        self, specs: Iterable[StudySpec], seconds: float = 60.0
    ) -> dict[str, optuna.Study]:
        """Hand studies in, and run whatever becomes due of them until they are over."""
        handles = [StudyHandle(spec.name, self.config) for spec in specs]
        for spec in specs:
            self.studies.submit(spec)

        def are_over() -> bool:
            for handle in handles:
                self.run_queued(handle.name)
            return all(handle.status().is_over for handle in handles)

        self.until(are_over, "all are over", seconds)
        return {handle.name: handle.study for handle in handles}

    def run_queued(self, study: str) -> None:
        """Run the trials of a study that wait for a slot, each when the one before is stored.

        None waits for the end of a pause after a failure.
        """
        for number in sorted(self.studies.leases(study).queued()):
            self.run_queued_one(study, number)

    def run_queued_one(self, study: str, number: int) -> None:
        """Run one of them."""
        leases, inbox = self.studies.leases(study), Inbox(self.client, "test")
        self.client.hset(keys.trial(study, number), "not_before", 0)
        hint = RunTrial(study=study, number=number, epoch=leases.epoch)
        self.runner.run(hint.sealed(self.config.seal))
        self.until(lambda: inbox.is_empty(study), "what it told is taken in")

    @contextmanager
    def stopped_clock(self) -> Iterator[None]:
        """Let the orchestrator begin no further turn."""
        with self._turning:
            yield

    def until(self, condition: Callable[[], T], what: str, seconds: float = 60.0) -> T:
        return wait_until(lambda: self.stopped or condition(), what, seconds)

    def _serve(self) -> None:
        try:
            with self.service:
                while not self._ended.is_set():
                    with self._turning:
                        self.service.turn()
        except BaseException as error:
            self.stopped.append(error)
            raise
