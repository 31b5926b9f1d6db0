"""A kept loader process: runs what DataLoaders give it, one job after the other, each as if afresh.

What stays is the interpreter with the libraries it has imported. The data set comes anew with each
job, modules that are no library's are imported anew, and the rest is put back as after a trial.

Invariant: a job draws and reads what it would in a process of its own; where this one cannot be put
back, it ends.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.machinery import EXTENSION_SUFFIXES
from multiprocessing import resource_sharer
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Final

import psutil
import torch
from torch.utils.data._utils import worker

from workers.managers.loader_job import Job, ReceivedJob
from workers.managers.loader_process import LoaderProcess
from workers.managers.process_init import cleanup_managers
from workers.managers.surroundings import Surroundings, is_of_a_library

#: Said of a job: it runs, or this process is not fit for it and leaves.
TAKEN: Final = b"taken"
UNFIT: Final = b"unfit"

#: Bytes by which this process may have grown when a job is over; else a fresh one is smaller.
_MOST_GROWTH: Final = 512 * 2**20

#: How long batches that nobody waits for may take to leave.
_PATIENCE_SECONDS: Final = 1.0

#: Top-level packages and modules that stay, wherever they lie.
_LASTING: Final = frozenset({"workers", "orchestrator", "__main__", "__mp_main__"})


def serve(connection: Connection, first: LoaderProcess, patience_seconds: float) -> None:
    """Run jobs until none came for so long, or the process that sends them is gone."""
    first(0)
    service = LoaderService(connection)
    with suppress(EOFError, OSError):
        while connection.poll(patience_seconds) and service.run():
            first.rest()


class LoaderService:
    """Runs jobs and answers each with `TAKEN`, and with the reasons for which this process ends.

    Args:
        connection: Where they come from.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._surroundings = Surroundings()
        self._sharing = _sharing()
        self._memory = _own_memory()
        self._num_jobs = 0

    def run(self) -> bool:
        """Run the job that comes; whether this process is fit for another one.

        Raises:
            EOFError, OSError: Whoever sends them is gone.
            Exception: Of a first job: it could not be unpickled.
        """
        received = ReceivedJob(self._connection)
        with self._surroundings.watched():
            job = self._unpack(received)
            if job is None:
                self._connection.send_bytes(UNFIT)
                return False
            self._connection.send_bytes(TAKEN)
            target, arguments = job
            target(*arguments)
            del job, target, arguments
        self._num_jobs += 1
        reasons = list(self._tidy())
        self._connection.send_bytes(json.dumps(reasons).encode())
        return not reasons

    def _unpack(self, received: ReceivedJob) -> Job | None:
        """A job; None where what the jobs before left may be the reason that it cannot be had.

        A module that registers something with a library may do so but once in a process.
        """
        try:
            return received.unpack()
        except Exception:
            if self._num_jobs == 0:
                raise
            return None

    def _tidy(self) -> Iterator[str]:
        """Put this process back; what could not be."""
        worker._worker_info = None  # of torch, which holds the data set by it
        if _sharing() != self._sharing:
            yield "it shares memory in another way"  # by a process that must outlast what it holds
        yield from _end_sending()
        cleanup_managers()  # those that a data set opened here
        yield from self._surroundings.restore()
        yield from _drop_modules()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            yield "CUDA was initialised"
        gc.collect()
        _give_memory_back()
        grown = _own_memory() - self._memory
        if grown > _MOST_GROWTH:
            yield f"it has grown by {grown >> 20} MiB"


def _sharing() -> str:
    """How tensors are sent from this process."""
    return str(torch.multiprocessing.get_sharing_strategy())  # type: ignore[no-untyped-call]


def _drop_modules() -> Iterator[str]:
    """Have modules that are no library's imported anew by the next job."""
    # all are looked at before any goes: a package without a file asks for its parent
    own = {name: _own_place(name, module) for name, module in sys.modules.copy().items()}
    for name, place in own.items():
        if place is None:
            continue
        if place.endswith(tuple(EXTENSION_SUFFIXES)):
            yield f"{name} is a C extension and stays loaded"
        del sys.modules[name]
    importlib.invalidate_caches()


def _own_place(name: str, module: ModuleType) -> str | None:
    """Where a module lies, unless it is a library's or stays."""
    if name.partition(".")[0] in _LASTING:
        return None
    place = getattr(module, "__file__", None)
    if place is None:
        with suppress(KeyError):  # its parent is gone
            place = next(iter(getattr(module, "__path__", None) or ()), None)
    # what libraries make at runtime names no place at all: `torch.ops`
    if not isinstance(place, str) or not os.path.isabs(place):  # noqa: PTH117 - asked often
        return None
    return None if is_of_a_library(place) else place


def _end_sending() -> Iterator[str]:
    """Drop batches that were made, and that nobody fetches any more."""
    until = time.monotonic() + _PATIENCE_SECONDS
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                yield "batches that nobody fetches are in its way"
    resource_sharer.stop(_PATIENCE_SECONDS)  # it holds the memory of those


def _own_memory() -> int:
    """Bytes that this process alone uses."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))


def _give_memory_back() -> None:
    if sys.platform == "linux":
        with suppress(AttributeError):  # musl has none
            ctypes.CDLL(None).malloc_trim(0)
