"""Loader processes that are forked from a server of this process instead of being spawned.

To spawn one takes seconds: it imports torch. The server (`fork_server.py`) has done that, once for
all epochs, evaluations and trials of this process; what it forks is as fresh as what is spawned.

Invariant: a process is forked only where a spawned one would begin with the same environment,
streams and limits; and none outlives its trial.
"""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing import forkserver, popen_forkserver, reduction, resource_tracker, spawn, util
from multiprocessing.context import SpawnContext, SpawnProcess, set_spawning_popen
from typing import Any, Final

from workers.logs import get_logger
from workers.managers import fork_server
from workers.managers.process_state import inherited
from workers.managers.surroundings import child_pids

log = get_logger(__name__)

#: How long a server may take to leave when nobody can ask it any more.
_LEAVING_SECONDS: Final = 5.0

#: What it runs. Its import path is this process's: it may come from a directory of that.
_PROGRAM: Final = (
    "import sys; sys.path[:] = {path!r}; from {module} import main; main({socket}, learns={learns})"
)


class ForkedLoaders:
    """The loader processes of this process, and the servers that fork them."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._server: _Server | None = None
        #: those that forked processes of this trial, and are to fork no more
        self._former: list[_Server] = []
        self._is_used = False
        #: whether a server may import libraries that its processes had to import
        self._may_learn = True

    def context(self) -> SpawnContext:
        """A `multiprocessing_context` for a DataLoader that would spawn its processes."""
        return ForkedContext(self)

    @property
    def are_usable(self) -> bool:
        """Whether the caller is whose processes these are, and no copy that a fork made."""
        return os.getpid() == self._owner

    def launch(self, descriptors: list[int]) -> tuple[int, int, int]:
        """Have a process forked.

        Args:
            descriptors: Open files that it takes along.

        Returns:
            Its pid; a pipe that its exit code can be read from; one to write what it is to do.

        Raises:
            OSError: None can be forked.
        """
        with self._lock:
            self._is_used = True
            server = self._fit_server()
            try:
                return server.launch(descriptors)
            except (OSError, EOFError) as error:
                log.info("fork_server_replaced", server=server.pid, reason=str(error))
                self._may_learn = self._may_learn and not server.is_alive  # else it has refused
                self._retire(server)
            try:
                return self._fit_server().launch(descriptors)
            except EOFError:
                raise OSError("no loader process can be started: see the worker's log") from None

    def end_trial(self) -> frozenset[int]:
        """End what the trial left; the pids of what stays for the next one."""
        with self._lock:
            server, self._is_used, was_used = self._server, False, self._is_used
            if server is None:
                return frozenset()
            for former in self._former:
                former.close()
            self._former.clear()
            if was_used:
                server.end_processes()
            return frozenset([server.pid])

    def close(self) -> None:
        """End all of them."""
        with self._lock:
            for server in (*self._former, *([self._server] if self._server else [])):
                server.close()
            self._former.clear()
            self._server = None

    def _fit_server(self) -> _Server:
        conditions = inherited()
        if self._server is not None and not self._server.is_fit(conditions):
            self._retire(self._server)
        if self._server is None:
            self._server = _Server(conditions, learns=self._may_learn)
        return self._server

    def _retire(self, server: _Server) -> None:
        """Have one fork no more; what it forked may still be at work."""
        self._former.append(server)
        self._server = None


class ForkedContext(SpawnContext):
    """A way to start processes: as `spawn` does, forked from a server.

    Args:
        loaders: Those of this process.
    """

    def __init__(self, loaders: ForkedLoaders) -> None:
        self._loaders = loaders

    def Process(self, *arguments: Any, **named: Any) -> Any:  # type: ignore[override]  # noqa: N802
        """What `multiprocessing` calls a process."""
        if self._loaders.are_usable:
            return ForkedProcess(self._loaders, *arguments, **named)
        return SpawnProcess(*arguments, **named)

    def __reduce__(self) -> tuple[Any, ...]:
        return SpawnContext, ()  # a copy, or another process's


class ForkedProcess(SpawnProcess):
    """A process that is forked from a server, and knows nothing of that.

    Args:
        loaders: Where it comes from.
        *arguments: As `multiprocessing.Process` takes them.
        **named: Likewise.
    """

    def __init__(self, loaders: ForkedLoaders, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.loaders: ForkedLoaders | None = loaders

    @staticmethod
    def _Popen(process_obj: Any) -> Any:  # noqa: N802
        return _Launched(process_obj)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "loaders": None}


class _Launched(popen_forkserver.Popen):
    """A process of ours, to `multiprocessing`."""

    method = "spawn"
    _fds: list[int]

    def _launch(self, process_obj: Any) -> None:
        pickled = io.BytesIO()
        set_spawning_popen(self)
        try:
            reduction.dump(spawn.get_preparation_data(process_obj._name), pickled)
            reduction.dump(process_obj, pickled)
        finally:
            set_spawning_popen(None)
        self.pid, self.sentinel, orders = process_obj.loaders.launch(self._fds)
        # the process sees by this one that its parent is gone
        ours = os.dup(orders)
        self.finalizer = util.Finalize(self, _close_all, (ours, self.sentinel))
        with open(orders, "wb", closefd=True) as pipe:  # noqa: PTH123 - it has no path
            pipe.write(pickled.getbuffer())


def _close_all(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class _Server:
    """A process that forks others.

    Args:
        conditions: In which it is started.
        learns: Whether it imports what its processes had to import.
    """

    def __init__(self, conditions: list[Any], *, learns: bool) -> None:
        self._conditions = conditions
        self._connection, theirs = socket.socketpair()
        with theirs:
            program = _PROGRAM.format(
                path=sys.path,
                module=fork_server.__name__,
                socket=theirs.fileno(),
                learns=learns,
            )
            flags = util._args_from_interpreter_flags()  # type: ignore[attr-defined]
            self._process = subprocess.Popen(
                [sys.executable, *flags, "-c", program],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self.pid = self._process.pid

    def is_fit(self, conditions: list[Any]) -> bool:
        """Whether it forks what would begin in these conditions."""
        return conditions == self._conditions and self.is_alive

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def launch(self, taken: list[int]) -> tuple[int, int, int]:
        """Have it fork a process, as `ForkedLoaders.launch` does.

        Raises:
            EOFError, OSError: It does not.
        """
        told_r, told_w = os.pipe()
        orders_r, orders_w = os.pipe()
        try:
            try:
                tracker: Any = resource_tracker.getfd()
                fork_server.request(self._connection, [orders_r, told_w, tracker, *taken])
            finally:
                os.close(orders_r)
                os.close(told_w)
            return forkserver.read_signed(told_r), told_r, orders_w
        except BaseException:
            os.close(told_r)
            os.close(orders_w)
            raise

    def end_processes(self) -> None:
        """End all that it forked."""
        for pid in child_pids(self.pid):
            log.warning("child_left", child=pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """Have it leave, and what it forked with it."""
        with suppress(OSError):  # an objective may have closed all that it did not open
            self._connection.close()
        try:
            self._process.wait(_LEAVING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
