"""What a DataLoader worker does before its first batch: die with its parent, and be registered.

Invariant: a loader never outlives the trial process that started it.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.util
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

import redis

from workers.coordination.connection import connect
from workers.coordination.rights import Role
from workers.processes.beat import ProcessBeat
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.states import ProcessKind
from workers.settings import Settings

_PR_SET_PDEATHSIG: Final = 1

Loader = TypeVar("Loader")

#: The server that this process was forked from, if it was.
forked_by: int | None = None

#: The exit code of a loader that finds its parent gone.
EXIT_ORPHAN: Final = 71


class LoaderProcess:
    """The `worker_init_fn` of every DataLoader; picklable.

    Args:
        settings: Where to register, or None outside a fleet.
        study: The study that the loader works for.
        trial: The trial that the loader works for.
        then: Another `worker_init_fn`, called afterwards.
    """

    def __init__(
        self,
        settings: Settings | None,
        study: str | None = None,
        trial: int | None = None,
        then: Callable[[int], object] | None = None,
    ) -> None:
        self._settings = settings
        self._parent = os.getpid()
        self._fields: dict[str, Any] = {"study": study, "trial": trial}
        self._then = then

    def __call__(self, index: int) -> None:
        """Run in the loader process, before its first batch."""
        started_by = multiprocessing.parent_process()
        parent = self._parent if started_by is None else int(started_by.pid or 0)
        end_with(parent if forked_by is None else forked_by)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
        if self._settings is not None:
            with suppress(redis.RedisError):  # a courtesy: the session already tells whose it is
                self._register(self._settings)
        if self._then is not None:
            self._then(index)

    def _register(self, settings: Settings) -> None:
        client = connect(settings, Role.WORKER, check=False)
        registry = ProcessRegistry(client, settings.times)
        record = ProcessRecord(registry, ProcessKind.LOADER, self._parent, self._fields)
        record.register()
        beat = ProcessBeat(record, settings.times.beat)
        beat.start()

        def leave() -> None:
            beat.stop()
            with suppress(redis.RedisError):
                record.gone()

        multiprocessing.util.Finalize(None, leave, exitpriority=10)


def end_with(parent: int) -> None:
    """Have this process be killed when the one that started it ends; at once if it is gone.

    Args:
        parent: Its pid.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(EXIT_ORPHAN)


def copy_loader(loader: Loader, **changes: Any) -> Loader:
    """A DataLoader like another one, of the same class, with some attributes changed.

    Those that a DataLoader lets nobody set are set, too: it is the copy's first use.
    """
    copied = object.__new__(type(loader))
    copied.__dict__.update(vars(loader))
    copied.__dict__.update({"_iterator": None, **changes})
    return copied
