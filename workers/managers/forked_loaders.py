"""Loader processes that are forked from a server of this process instead of being spawned.

To spawn one takes seconds: it imports torch. The server (`fork_server.py`) has done that, once for
all epochs, evaluations and trials of this process; what it forks is as fresh as what is spawned.

Invariant: a process is forked only where a spawned one would begin with the same environment,
limits and signals; and none outlives its trial.
"""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, popen_forkserver, reduction, resource_tracker, spawn, util
from multiprocessing.connection import wait
from multiprocessing.context import SpawnContext, SpawnProcess, set_spawning_popen
from pathlib import Path
from typing import Any, Final

import psutil

from workers.logs import get_logger
from workers.managers import fork_server
from workers.managers.inherited import inherited
from workers.managers.surroundings import child_pids
from workers.protocol.plain import describe_error

log = get_logger(__name__)

#: How long a server may take to import torch, to fork, and to leave when nobody asks it any more.
_STARTING_SECONDS: Final = 300.0
_FORKING_SECONDS: Final = 60.0
_LEAVING_SECONDS: Final = 5.0

#: The number of standard error.
_LAST_STREAM: Final = 2

#: Characters of why one is replaced.
_MAX_REASON: Final = 200

#: What it runs.
_PROGRAM: Final = (
    "import sys; sys.path[:] = {path!r}; from {module} import main; main({socket}, {parent})"
)


class ForkedLoaders:
    """The loader processes of this process, and the servers that fork them.

    To be made before any trial: a server imports by the path that this process has now.
    """

    def __init__(self) -> None:
        self._owner = os.getpid()
        # Python takes nothing else there for a path, and "" for where the objective will be
        self._path = [str(Path(entry).absolute()) for entry in sys.path if isinstance(entry, str)]
        self._lock = threading.RLock()  # a signal's handler may close this in the midst of a launch
        self._server: _Server | None = None
        #: those that forked processes which may be at work, and are to fork no more
        self._former: list[_Server] = []
        self._is_used = False

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
            try:
                return self._launch(descriptors)
            except OSError as error:
                log.info("fork_server_replaced", reason=describe_error(error, _MAX_REASON))
            return self._launch(descriptors)

    def end_trial(self) -> frozenset[int]:
        """End what the trial left; the pids of what stays for the next one."""
        if not self.are_usable:
            return frozenset()
        with self._lock:
            server, self._is_used, was_used = self._server, False, self._is_used
            former, self._former = self._former, []
            for each in former:
                each.close()
            if server is None or not server.is_alive:
                return frozenset()
            if was_used:
                server.end_processes()
            return frozenset([server.pid])

    def close(self) -> None:
        """End all of them."""
        if not self.are_usable:
            return
        with self._lock:
            if self._server is not None:
                self._retire(self._server)
            former, self._former = self._former, []
            for each in former:
                each.close()

    def _launch(self, descriptors: list[int]) -> tuple[int, int, int]:
        with _streams_in_place():
            server, pipes = self._fit_server(), _Pipes()
            try:
                return server.launch(descriptors, pipes)
            except BaseException:
                pipes.close()
                self._retire(server)  # what is half said to it cannot be taken back
                raise

    def _fit_server(self) -> _Server:
        conditions = inherited()
        if self._server is not None and not self._server.is_fit(conditions):
            self._retire(self._server)
        former, self._former = self._former, []
        for each in former:
            if each.has_processes:
                self._former.append(each)
            else:
                each.close()
        if self._server is None:
            self._server = _Server(conditions, self._path)
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
        self._reads = threading.Lock()
        pickled = io.BytesIO()
        set_spawning_popen(self)
        try:
            reduction.dump(spawn.get_preparation_data(process_obj._name), pickled)
            reduction.dump(process_obj, pickled)
        finally:
            set_spawning_popen(None)
        self.pid, self.sentinel, orders = process_obj.loaders.launch(self._fds)
        # the process sees by its orders' pipe that its parent is gone
        self.finalizer = util.Finalize(self, _close_all, (orders, self.sentinel))
        # of one that was killed by now, whoever waits for it is told
        with suppress(BrokenPipeError), open(orders, "wb", closefd=False) as pipe:
            pipe.write(pickled.getbuffer())

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        if self.returncode is None and wait([self.sentinel], 0 if flag == os.WNOHANG else None):
            self._read_code()
        return self.returncode

    def _read_code(self) -> None:
        with self._reads:  # it is told once
            if self.returncode is not None:
                return
            try:
                self.returncode = forkserver.read_signed(self.sentinel)
            except (OSError, EOFError):
                self.returncode = -signal.SIGKILL  # with its server, without which none lives


def _close_all(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class _Pipes:
    """What is told to a process that is to be forked, and what it tells.

    Raises:
        OSError: There can be no more of them.
    """

    def __init__(self) -> None:
        self.told_r, self.told_w = os.pipe()
        try:
            self.orders_r, self.orders_w = os.pipe()
        except OSError:
            _close_all(self.told_r, self.told_w)
            raise
        self._are_theirs_open = True

    def close_theirs(self) -> None:
        """Close the ends that the process has."""
        if self._are_theirs_open:
            self._are_theirs_open = False
            _close_all(self.orders_r, self.told_w)

    def close(self) -> None:
        """Close all."""
        self.close_theirs()
        _close_all(self.told_r, self.orders_w)


class _Server:
    """A process that forks others.

    Args:
        conditions: In which it is started.
        path: By which it imports.
    """

    def __init__(self, conditions: list[Any], path: list[str]) -> None:
        self._conditions = conditions
        self._connection, theirs = socket.socketpair()
        self._connection.settimeout(_FORKING_SECONDS)
        theirs.setblocking(True)  # noqa: FBT003 - it takes no name; a default time-out may be set
        with theirs:
            program = _PROGRAM.format(
                path=path, module=fork_server.__name__, socket=theirs.fileno(), parent=os.getpid()
            )
            flags = util._args_from_interpreter_flags()  # type: ignore[attr-defined]
            self._process = subprocess.Popen(
                [spawn.get_executable(), *flags, "-c", program],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                restore_signals=False,  # as `spawn` leaves them
            )
        self.pid = self._process.pid
        self._is_ready = False

    def is_fit(self, conditions: list[Any]) -> bool:
        """Whether it forks what would begin in these conditions."""
        return conditions == self._conditions and self.is_alive

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    @property
    def has_processes(self) -> bool:
        """Whether one that it forked runs."""
        return bool(self._forked())

    def launch(self, taken: list[int], pipes: _Pipes) -> tuple[int, int, int]:
        """Have it fork a process, as `ForkedLoaders.launch` does.

        Raises:
            OSError: It does not.
        """
        self._await_ready()
        tracker: Any = resource_tracker.getfd()
        sent = [pipes.orders_r, pipes.told_w, tracker, 1, 2, *taken]
        fork_server.request(self._connection, sent)
        pipes.close_theirs()
        _await(pipes.told_r, _FORKING_SECONDS)
        try:
            return forkserver.read_signed(pipes.told_r), pipes.told_r, pipes.orders_w
        except EOFError:
            raise ChildProcessError("the server of loader processes has forked none") from None

    def end_processes(self) -> None:
        """End all that it forked."""
        ended: set[int] = set()
        while left := set(self._forked()) - ended:  # a list may lack some where another one ends
            for pid in left:
                log.warning("child_left", child=pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            ended |= left

    def close(self) -> None:
        """Have it leave, and what it forked with it."""
        with suppress(OSError):  # an objective may have closed all that it did not open
            # a process that was forked from this one may have it open, too
            self._connection.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self._connection.close()
        try:
            self._process.wait(_LEAVING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _await_ready(self) -> None:
        """Wait until it forks: what is sent before is of a number that the system bounds."""
        if self._is_ready:
            return
        _await(self._connection, _STARTING_SECONDS)
        self._is_ready = self._connection.recv(1) == fork_server.READY
        if not self._is_ready:
            raise ChildProcessError(
                f"the server of loader processes has ended (exit code {self._process.poll()})"
            )

    def _forked(self) -> list[int]:
        if self.is_alive:
            with suppress(psutil.Error):  # it has just ended
                return child_pids(self.pid)
        return []


def _await(told: Any, seconds: float) -> None:
    """Wait until the server has told something, or is gone.

    Raises:
        TimeoutError: It stands still.
    """
    if not wait([told], seconds):
        raise TimeoutError(f"the server of loader processes tells nothing for {seconds} s")


@contextmanager
def _streams_in_place() -> Iterator[None]:
    """Where the standard streams are closed, have nothing else take their numbers meanwhile."""
    opened = []
    try:
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST_STREAM:
            opened.append(descriptor)
            os.set_inheritable(descriptor, True)  # noqa: FBT003 - it takes no name
        os.close(descriptor)
        yield
    finally:
        _close_all(*opened)
