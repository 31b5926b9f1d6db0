"""The process that loader processes are forked from: it imports libraries, and does nothing else.

What is forked from it begins as a spawned process would after its imports: no module of a user, no
CUDA, no thread of Python's, no manager. What it is to do comes through a pipe, as for one that
`multiprocessing` has forked by its own server, whose place this one takes: it has no address that
others could find, and ends with the process that started it.

The libraries are torch, and those that an earlier loader process had to import; where one of these
starts threads or CUDA, which do not survive a fork, this process forks no more.

Invariant: this process runs no code of a user, and what it forked ends with it.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import random
import selectors
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Collection
from contextlib import suppress
from multiprocessing import forkserver, reduction, resource_tracker, spawn
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
import torch.utils.data

from workers.managers import loader_process
from workers.managers.surroundings import is_of_a_library

#: As many open files as go over a socket at once, at most 253.
_MOST_AT_ONCE: Final = 128

#: What comes first of each request: a number of open files.
_LENGTH_BYTES: Final = forkserver.SIGNED_STRUCT.size

#: More than goes over a socket as one message; where a process had to import more, it tells none.
_MOST_TOLD_BYTES: Final = 1 << 20


def request(connection: socket.socket, descriptors: list[int]) -> None:
    """Ask the server at the other end for a process.

    Args:
        connection: Leads there.
        descriptors: A pipe to read from what the process is to do; one to which its pid is
            written, and its exit code; the resource tracker's; and those that it takes along.

    Raises:
        OSError: The server is gone.
    """
    connection.sendall(forkserver.SIGNED_STRUCT.pack(len(descriptors)))
    for start in range(0, len(descriptors), _MOST_AT_ONCE):
        reduction.sendfds(connection, descriptors[start : start + _MOST_AT_ONCE])


def main(descriptor: int, *, learns: bool) -> NoReturn:
    """Fork until whoever asks for processes is gone.

    Args:
        descriptor: The socket by which they are asked for.
        learns: Whether to import what processes that were forked had to import.
    """
    loader_process.end_with(os.getppid())
    with socket.socket(fileno=descriptor) as connection:
        ForkServer(connection, learns=learns).serve()
    os._exit(0)  # at once: somebody waits


class ForkServer:
    """Forks processes.

    Args:
        connection: Where they are asked for.
        learns: Whether to import what they had to import.
    """

    def __init__(self, connection: socket.socket, *, learns: bool) -> None:
        self._connection = connection
        self._pid = os.getpid()
        self._is_fit = True
        self._learns = learns
        #: modules that it was told of
        self._learned: set[str] = set()
        self._lessons, self._told_lessons = socket.socketpair(type=socket.SOCK_DGRAM)
        for end in (self._lessons, self._told_lessons):
            end.setblocking(False)  # noqa: FBT003 - it takes no name
        self._wakeup_r, self._wakeup_w = os.pipe()
        for descriptor in (self._wakeup_r, self._wakeup_w):
            os.set_blocking(descriptor, False)
        # a signal that is ignored wakes nobody
        signals: dict[int, Any] = {signal.SIGCHLD: lambda *_: None, signal.SIGINT: signal.SIG_IGN}
        self._handlers = {number: signal.signal(number, to) for number, to in signals.items()}
        signal.set_wakeup_fd(self._wakeup_w)
        #: where the exit code of each is awaited
        self._told: dict[int, int] = {}

    def serve(self) -> None:
        """Fork until nobody can ask any more."""
        _freeze()
        with selectors.DefaultSelector() as selector:
            for source in (self._connection, self._wakeup_r, self._lessons):
                selector.register(source, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if self._wakeup_r in ready:
                    self._reap()
                if self._lessons in ready:
                    self._learn()
                if self._connection in ready:
                    descriptors = self._receive()
                    if descriptors is None:
                        return
                    self._fork(*descriptors)

    def _receive(self) -> list[int] | None:
        with suppress(ConnectionResetError):
            length = self._connection.recv(_LENGTH_BYTES, socket.MSG_WAITALL)
            if length:
                (left,) = forkserver.SIGNED_STRUCT.unpack(length)
                found: list[int] = []
                while left > len(found):
                    size = min(_MOST_AT_ONCE, left - len(found))
                    found += reduction.recvfds(self._connection, size)
                return found
        return None

    def _fork(self, orders: int, told: int, *taken: int) -> None:
        """Fork; where that cannot be, close the pipe that its pid would go to."""
        try:
            if not self._is_fit:
                raise BlockingIOError("what was imported does not survive that")
            with warnings.catch_warnings():
                # threads of a BLAS, which see to it themselves
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
        except OSError as error:
            print(f"no loader process is forked: {error}", file=sys.stderr, flush=True)  # noqa: T201
            os.close(told)
        else:
            if pid == 0:
                self._run(orders, told, list(taken))
            self._told[pid] = told
            _tell(told, pid)
        for descriptor in (orders, *taken):
            os.close(descriptor)

    def _reap(self) -> None:
        os.read(self._wakeup_r, 1 << 16)
        with suppress(ChildProcessError):  # there are none
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = found
                told = self._told.pop(pid, None)
                if told is not None:  # else a library has started it
                    _tell(told, os.waitstatus_to_exitcode(status))
                    os.close(told)

    def _learn(self) -> None:
        """Import what a process had to import."""
        names = set(told := json.loads(self._lessons.recv(_MOST_TOLD_BYTES))) - self._learned
        if not names:
            return
        before = _threads_that_stay()
        for name in told:
            with suppress(Exception):  # it may need what only the user's own code does before
                importlib.import_module(name)
        self._learned |= names
        has_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self._is_fit = self._is_fit and not has_cuda and _threads_that_stay() <= before
        _freeze()

    def _run(self, orders: int, told: int, taken: list[int]) -> NoReturn:
        """Be a process that was asked for."""
        code, known = 1, self._learned.union(sys.modules)
        try:
            loader_process.end_with(self._pid)
            loader_process.forked_by = self._pid
            self._leave(told)
            code = _obey(orders, *taken)
            self._tell_imported(known)
            # as the interpreter does where one was spawned
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
        except BaseException:  # noqa: BLE001 - whatever it is, this is not the server
            sys.excepthook(*sys.exc_info())
        finally:
            with suppress(Exception):  # they may be closed
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _tell_imported(self, known: Collection[str]) -> None:
        """Tell the server which libraries it has not imported yet."""
        names = [
            name
            for name, module in sys.modules.copy().items()
            if name not in known and is_of_a_library(getattr(module, "__file__", None) or "")
        ]
        if names and self._learns:
            with suppress(OSError):  # there are too many, or other ones wait to be read
                self._told_lessons.send(json.dumps(names).encode())

    def _leave(self, told: int) -> None:
        """Hold nothing that is the server's, but a way to tell it of imports."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._connection.close()
        self._lessons.close()
        for descriptor in (self._wakeup_r, self._wakeup_w, told, *self._told.values()):
            os.close(descriptor)


def _obey(orders: int, tracker: int, *taken: int) -> int:
    """Do what comes through the pipe; the exit code."""
    resource_tracker._resource_tracker._fd = tracker  # type: ignore[attr-defined]
    forkserver._forkserver._inherited_fds = list(taken)  # type: ignore[attr-defined]
    # in a process of its own, each would begin with others
    random.seed()
    np.random.seed()
    main: Any = spawn._main
    return int(main(orders, os.dup(orders)))


def _freeze() -> None:
    """Have no collection go through, and so copy, what all forked processes share."""
    gc.collect()
    gc.freeze()


def _threads_that_stay() -> int:
    """How many threads this process has that do not end where it forks, as those of a BLAS do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.exists() else threading.active_count()


def _tell(descriptor: int, number: int) -> None:
    with suppress(BrokenPipeError):  # nobody waits for it
        forkserver.write_signed(descriptor, number)
