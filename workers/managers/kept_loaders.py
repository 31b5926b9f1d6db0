"""The spawned loader processes of this one, kept from one use to the next.

Starting one imports torch and takes seconds, which is what is saved: at each epoch, each evaluation
and each trial. What one runs is what a fresh one would (`loader_service.py`).

Invariant: a process is given out only where a fresh one would begin as it did: for the same study,
with the same environment, import path, streams and limits.
"""

from __future__ import annotations

import json
import multiprocessing.process
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Final

from workers.logs import get_logger
from workers.managers.loader_job import Job, PackedJob
from workers.managers.loader_process import LoaderProcess
from workers.managers.loader_service import TAKEN, UNFIT, serve
from workers.managers.process_state import inherited

log = get_logger(__name__)

#: By how much longer a process waits for work than it may be given some.
_MARGIN_SECONDS: Final = 15.0

#: How long one may take to say that it has begun with a job, and to leave when it is told.
_TAKING_SECONDS: Final = 60.0
_LEAVING_SECONDS: Final = 5.0

#: How long the end of a trial waits for those that are leaving.
_TRIAL_END_SECONDS: Final = 1.0


class KeptLoaders:
    """The loader processes of this process.

    Args:
        first: Makes what a process does first; it names the study, too.
        idle_seconds: How long one is kept without work; with 0, none is.
    """

    def __init__(self, first: Callable[[], LoaderProcess], idle_seconds: float) -> None:
        self._first = first
        self._idle_seconds = idle_seconds
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._idle: list[_Server] = []
        self._busy: list[_Server] = []
        self._leaving: list[_Server] = []
        #: how many had work at once in this trial
        self._most_busy = 0

    def context(self) -> SpawnContext:
        """A `multiprocessing_context` for a DataLoader that would spawn its processes."""
        return KeptContext(self) if self._idle_seconds > 0 else SpawnContext()

    @property
    def are_usable(self) -> bool:
        """Whether the caller may be given a process.

        One ends with the thread that started it, and the copy of this that a fork made is not its
        parent.
        """
        in_main_thread = threading.current_thread() is threading.main_thread()
        return in_main_thread and os.getpid() == self._owner

    def give(self, job: Job) -> _Server:
        """Have a process run a job: one that was kept, else a new one."""
        packed = PackedJob.of(job)
        with self._lock:
            server = self._give_to_kept(packed)
            if server is None:
                server = _Server(self._first(), self._conditions(), self._idle_seconds)
                server.send(packed)
            self._busy.append(server)
            self._most_busy = max(self._most_busy, len(self._busy))
            return server

    def take_back(self, server: _Server, *, is_fit: bool) -> None:
        """Keep a process whose job is over, or let it go."""
        with self._lock:
            if server in self._busy:  # else its trial is over
                self._busy.remove(server)
                server.idle_since = time.monotonic()
                if is_fit:
                    self._idle.append(server)
                else:
                    self._let_go(server)

    def end_trial(self) -> frozenset[int]:
        """Keep as many as the trial had at once; the pids of what is kept.

        What has work still is the trial's, and left to whoever ends its children.
        """
        with self._lock:
            self._busy.clear()
            alive = [server for server in self._idle if server.process.is_alive()]
            kept = alive[: self._most_busy]
            self._drop([server for server in self._idle if server not in kept])
            self._most_busy = 0
            self._end_leaving(_TRIAL_END_SECONDS)
            return frozenset(server.pid for server in self._idle)

    def close(self) -> None:
        """End all of them."""
        with self._lock:
            self._drop(self._idle)
            self._leaving += self._busy
            self._busy.clear()
            self._end_leaving(_LEAVING_SECONDS)

    def _give_to_kept(self, packed: PackedJob) -> _Server | None:
        conditions = self._conditions() if self._idle else None
        self._drop([each for each in self._idle if not each.is_fit(conditions, self._idle_seconds)])
        while self._idle:
            server = self._idle.pop()
            with suppress(OSError, EOFError):
                server.send(packed)
                if server.has_taken():
                    return server
            self._let_go(server)
        return None

    def _conditions(self) -> list[Any]:
        return [self._first().study, *inherited()]

    def _drop(self, servers: list[_Server]) -> None:
        for server in list(servers):
            self._idle.remove(server)
            self._let_go(server)

    def _let_go(self, server: _Server) -> None:
        """Have one leave, and see to it that those before it have."""
        server.dismiss()
        self._leaving = [each for each in self._leaving if not each.has_left(_LEAVING_SECONDS)]
        self._leaving.append(server)

    def _end_leaving(self, patience_seconds: float) -> None:
        until = time.monotonic() + patience_seconds
        for server in self._leaving:
            server.end(max(0.0, until - time.monotonic()))
        self._leaving.clear()


class KeptContext(SpawnContext):
    """A way to start processes: as `spawn` does, or by having a kept one do the work.

    Args:
        loaders: Those of this process.
    """

    def __init__(self, loaders: KeptLoaders) -> None:
        self._loaders = loaders

    def Process(self, *, target: Any, args: Any) -> Any:  # type: ignore[override]  # noqa: N802
        """What `multiprocessing` calls a process, as far as a DataLoader asks it."""
        if self._loaders.are_usable:
            return LoaderSeat(self._loaders, (target, args))
        return SpawnProcess(target=target, args=args)

    def __reduce__(self) -> tuple[Any, ...]:
        return SpawnContext, ()  # a copy, or another process's


class LoaderSeat:
    """One job of a process: to a DataLoader, a process of its own.

    Args:
        loaders: Where the process comes from.
        job: What it is given.
    """

    daemon = True

    def __init__(self, loaders: KeptLoaders, job: Job) -> None:
        self._loaders = loaders
        self._job: Job | None = job
        self._server: _Server | None = None
        self._is_over = False

    def start(self) -> None:
        """Have the job run.

        Raises:
            TypeError, AttributeError, pickle.PicklingError: It cannot be pickled.
        """
        job, self._job = self._job, None
        if job is not None:
            self._server = self._loaders.give(job)

    @property
    def pid(self) -> int | None:
        """The process's."""
        return None if self._server is None else self._server.pid

    @property
    def exitcode(self) -> int | None:
        """None while the job runs; 0 after it, unless the process died."""
        if self.is_alive():
            return None
        return 0 if self._is_over or self._server is None else self._server.process.exitcode

    def is_alive(self) -> bool:
        """Whether the job runs."""
        return self._server is not None and not self._look(self._server, 0.0)

    def join(self, timeout: float | None = None) -> None:
        """Wait until it is over."""
        if self._server is not None:
            self._look(self._server, timeout)

    def terminate(self) -> None:
        """End the process, and with it the job, if it runs."""
        if self._server is not None and self.is_alive():
            self._server.process.terminate()

    def _look(self, server: _Server, timeout: float | None) -> bool:
        if self._is_over:
            return True
        reasons = server.await_end(timeout)
        if reasons is None:
            return False
        if reasons:
            log.info("loader_not_kept", loader=server.pid, reasons=reasons)
        self._is_over = server.is_whole
        self._loaders.take_back(server, is_fit=not reasons)
        return True


class _Server:
    """A process that runs jobs."""

    def __init__(self, first: LoaderProcess, conditions: list[Any], idle_seconds: float) -> None:
        self._conditions = conditions
        self._connection, theirs = SpawnContext().Pipe()
        patience = idle_seconds + _MARGIN_SECONDS
        self.process = SpawnProcess(target=serve, args=(theirs, first, patience), daemon=True)
        self.process.start()
        theirs.close()
        self.pid = int(self.process.pid or 0)
        self.idle_since = self.leaves_since = 0.0
        #: whether it has not died in the midst of a job
        self.is_whole = True
        # an objective may wait for all that are listed there
        multiprocessing.process._children.discard(self.process)  # type: ignore[attr-defined]

    def is_fit(self, conditions: list[Any] | None, idle_seconds: float) -> bool:
        """Whether it may be given work where a fresh one would begin so."""
        is_young = time.monotonic() - self.idle_since < idle_seconds
        return is_young and conditions == self._conditions and self.process.is_alive()

    def send(self, packed: PackedJob) -> None:
        """Give it a job.

        Raises:
            OSError: It is gone.
        """
        packed.send(self._connection, self.pid)

    def has_taken(self) -> bool:
        """Whether it has begun with its job, for which it has to import what that needs.

        Raises:
            EOFError, OSError: It is gone.
        """
        return self._connection.poll(_TAKING_SECONDS) and self._connection.recv_bytes() != UNFIT

    def await_end(self, timeout: float | None) -> list[str] | None:
        """Wait for the end of its job: why it cannot have another one; None while that runs."""
        try:
            while wait([self._connection, self.process.sentinel], timeout):
                if (said := self._connection.recv_bytes()) != TAKEN:
                    reasons: list[str] = json.loads(said)
                    return reasons
        except (EOFError, OSError):
            self.process.join(_LEAVING_SECONDS)  # its end is seen before it can be told
            self.is_whole = False
            return ["it has died"]
        return None

    def dismiss(self) -> None:
        """Have it leave."""
        self._connection.close()
        self.leaves_since = time.monotonic()

    def has_left(self, patience_seconds: float) -> bool:
        """Whether it has; one that was told so many seconds ago is killed."""
        if time.monotonic() - self.leaves_since > patience_seconds and self.process.is_alive():
            self.process.kill()
        return not self.process.is_alive()  # which waits for one that has ended, too

    def end(self, patience_seconds: float) -> None:
        """See to it that it has left."""
        self.dismiss()
        self.process.join(patience_seconds)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
