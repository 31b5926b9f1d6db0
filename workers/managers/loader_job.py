"""What a DataLoader gives a process to do, on its way to one that runs already.

The queues of a DataLoader can be given to a process only where it is started. Here a job is pickled
as for that, and what it holds of open files goes over the socket between the two.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing import context, reduction
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

#: A function, and what it is called with.
Job = tuple[Callable[..., object], tuple[Any, ...]]


class PackedJob(NamedTuple):
    """A job, pickled; its open files are those of whoever packed it."""

    pickled: memoryview
    descriptors: list[int]

    @classmethod
    def of(cls, job: Job) -> PackedJob:
        """Pickle a job, which has to live until it is sent.

        Raises:
            TypeError, AttributeError, pickle.PicklingError: It cannot be.
        """
        packing = _Packing()
        before = context.get_spawning_popen()
        context.set_spawning_popen(packing)  # type: ignore[arg-type]  # what of it is asked here
        try:
            return cls(reduction.ForkingPickler.dumps(job), packing.descriptors)
        finally:
            context.set_spawning_popen(before)

    def send(self, connection: Connection, pid: int) -> None:
        """Send it to the process at the other end.

        Raises:
            OSError: It is gone.
        """
        connection.send(len(self.descriptors))
        for descriptor in self.descriptors:
            reduction.send_handle(connection, descriptor, pid)
        connection.send_bytes(self.pickled)


class ReceivedJob:
    """A job that has arrived, and is not unpickled yet.

    Raises:
        EOFError, OSError: The process at the other end is gone.
    """

    def __init__(self, connection: Connection) -> None:
        number = connection.recv()
        self._descriptors = [reduction.recv_handle(connection) for _ in range(number)]
        for descriptor in self._descriptors:
            os.set_inheritable(descriptor, False)  # noqa: FBT003 - it takes no name
        self._pickled = connection.recv_bytes()

    def unpack(self) -> Job:
        """The job; imports what it needs.

        Raises:
            Exception: Whatever importing, and building what it consists of, raises.
        """
        _SentDescriptor.arrived, pickled = self._descriptors, self._pickled
        self._descriptors, self._pickled = [], b""
        job: Job = reduction.ForkingPickler.loads(pickled)
        return job


class _SentDescriptor:
    """An open file, by its place among those that come with the job."""

    arrived: list[int]

    def __init__(self, place: int) -> None:
        self._place = place

    def detach(self) -> int:
        """The descriptor, which is the caller's from here on."""
        return self.arrived[self._place]


class _Packing:
    """Stands for the start of a process, which what is pickled asks to take files along."""

    DupFd = _SentDescriptor

    def __init__(self) -> None:
        self.descriptors: list[int] = []

    def duplicate_for_child(self, descriptor: int) -> int:
        """Take a file along; its place."""
        self.descriptors.append(descriptor)
        return len(self.descriptors) - 1
