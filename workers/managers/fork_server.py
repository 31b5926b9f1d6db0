"""The process that loader processes are forked from: it has imported torch, and does nothing else.

What is forked from it begins as a spawned process would after its imports: no module of a user, no
CUDA, no thread of Python's, no manager. What it is to do comes through a pipe, as for one that
`multiprocessing` has forked by its own server, whose place this one takes: it has no address that
others could find, and ends with the process that started it.

Invariant: this process runs no code of a user, and what it forked ends with it.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import random
import selectors
import signal
import socket
import struct
import sys
import threading
import warnings
from contextlib import suppress
from multiprocessing import forkserver, reduction, resource_tracker, spawn
from typing import Any, Final, NoReturn

import numpy as np

# what a DataLoader's process needs, whatever it reads
import torch.utils.data  # noqa: F401

from workers.managers import loader_process

#: Told when it has imported what it has to, and forks.
READY: Final = b"r"

#: As many open files as go over a socket at once, at most 253.
_MOST_AT_ONCE: Final = 128

#: What comes first of each request: a number of open files.
_LENGTH_BYTES: Final = forkserver.SIGNED_STRUCT.size

#: How long the rest of a request may take to come.
_SENDING_SECONDS: Final = 5.0

#: How often it looks whether the process that started it is there; a fork of that may hold its end.
_LOOK_SECONDS: Final = 1.0


def request(connection: socket.socket, descriptors: list[int]) -> None:
    """Ask the server at the other end for a process.

    Args:
        connection: Leads there.
        descriptors: A pipe to read from what the process is to do; one to which its pid is
            written, and its exit code; the resource tracker's; its standard output and error; and
            those that it takes along.

    Raises:
        OSError: The server is gone.
    """
    connection.sendall(forkserver.SIGNED_STRUCT.pack(len(descriptors)))
    for start in range(0, len(descriptors), _MOST_AT_ONCE):
        reduction.sendfds(connection, descriptors[start : start + _MOST_AT_ONCE])


def main(descriptor: int, parent: int) -> NoReturn:
    """Fork until whoever asks for processes is gone.

    Args:
        descriptor: The socket by which they are asked for.
        parent: The process that has started this one.
    """
    _let_go_of_streams()  # before anything is opened: they may be closed
    os.chdir("/")  # it holds no trial's folder
    with socket.socket(fileno=descriptor) as connection:
        ForkServer(connection, parent).serve()
    os._exit(0)  # at once: somebody waits


class ForkServer:
    """Forks processes.

    Args:
        connection: Where they are asked for.
        parent: By whom.
    """

    def __init__(self, connection: socket.socket, parent: int) -> None:
        self._connection = connection
        connection.settimeout(_SENDING_SECONDS)
        #: whether a request was half said, so that none can be understood any more
        self._is_deaf = False
        self._parent, self._pid = parent, os.getpid()
        self._selector = selectors.DefaultSelector()
        self._wakeup_r, self._wakeup_w = os.pipe()
        for descriptor in (self._wakeup_r, self._wakeup_w):
            os.set_blocking(descriptor, False)
        # a signal that is ignored, or blocked, wakes nobody
        signals: dict[int, Any] = {signal.SIGCHLD: lambda *_: None, signal.SIGINT: signal.SIG_IGN}
        self._handlers = {number: signal.signal(number, to) for number, to in signals.items()}
        self._mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        signal.set_wakeup_fd(self._wakeup_w)
        #: where the exit code of each is awaited
        self._told: dict[int, int] = {}

    def serve(self) -> None:
        """Fork until nobody can ask any more."""
        gc.collect()
        gc.freeze()  # else collecting would copy what all of them share
        for source in (self._connection, self._wakeup_r):
            self._selector.register(source, selectors.EVENT_READ)
        with suppress(OSError):
            self._connection.sendall(READY)
        while os.getppid() == self._parent:
            ready = {key.fileobj for key, _ in self._selector.select(_LOOK_SECONDS)}
            if self._wakeup_r in ready:
                self._reap()
            if self._connection in ready and not self._answer():
                return

    def _answer(self) -> bool:
        """Take a request in; whether there may be others."""
        try:
            if self._is_deaf:
                return bool(self._connection.recv(1 << 16))
            length = self._connection.recv(_LENGTH_BYTES)
            if not length:
                return False
            descriptors = self._receive(*forkserver.SIGNED_STRUCT.unpack(length))
        except (ConnectionResetError, EOFError):
            return False
        except (OSError, RuntimeError, struct.error):
            self._is_deaf = True  # what was forked goes on
            return True
        self._fork(*descriptors)
        return True

    def _receive(self, count: int) -> list[int]:
        found: list[int] = []
        while count > len(found):
            size = min(_MOST_AT_ONCE, count - len(found))
            found += reduction.recvfds(self._connection, size)
        return found

    def _fork(self, orders: int, told: int, *taken: int) -> None:
        """Fork; where that cannot be, close the pipe that its pid would go to."""
        try:
            with warnings.catch_warnings():
                # threads of a BLAS, which see to it themselves
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
        except OSError:
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
                if told is not None:  # else it is no loader
                    _tell(told, os.waitstatus_to_exitcode(status))
                    os.close(told)

    def _run(self, orders: int, told: int, taken: list[int]) -> NoReturn:
        """Be a process that was asked for."""
        code = 1
        try:
            loader_process.end_with(self._pid)
            loader_process.forked_by = self._pid
            self._leave(told)
            code = _obey(orders, *taken)
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

    def _leave(self, told: int) -> None:
        """Hold nothing that is the server's."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        self._selector.close()
        self._connection.close()
        for descriptor in (self._wakeup_r, self._wakeup_w, told, *self._told.values()):
            os.close(descriptor)


def _obey(orders: int, tracker: int, output: int, error: int, *taken: int) -> int:
    """Do what comes through the pipe; the exit code."""
    for place, descriptor in ((1, output), (2, error)):
        os.dup2(descriptor, place)
        os.close(descriptor)
    resource_tracker._resource_tracker._fd = tracker  # type: ignore[attr-defined]
    forkserver._forkserver._inherited_fds = list(taken)  # type: ignore[attr-defined]
    # in a process of its own, each would begin with others
    random.seed()
    np.random.seed()
    # folders may have been made since
    sys.path_importer_cache.clear()
    importlib.invalidate_caches()
    main: Any = spawn._main
    return int(main(orders, os.dup(orders)))


def _let_go_of_streams() -> None:
    """Hold no output of whoever started this process: somebody may wait for its end."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for place in range(3):
        os.dup2(nothing, place)
    os.close(nothing)


def _tell(descriptor: int, number: int) -> None:
    with suppress(BrokenPipeError):  # nobody waits for it
        forkserver.write_signed(descriptor, number)
