"""What a DataLoader worker does before its first batch: die with its parent, and be registered.

Invariant: a loader never outlives the trial process that started it.
"""

from __future__ import annotations

import ctypes
import multiprocessing.util
import os
import signal
import sys
from contextlib import suppress
from typing import Final

import redis

from workers.coordination.connection import connect
from workers.coordination.rights import Role
from workers.processes.beat import ProcessBeat
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.states import ProcessKind
from workers.settings import Settings

_PR_SET_PDEATHSIG: Final = 1

#: The exit code of a loader that finds its parent gone.
EXIT_ORPHAN: Final = 71


class LoaderProcess:
    """The `worker_init_fn` of every DataLoader; picklable.

    Args:
        settings: Where to register, or None outside a fleet.
        study: The study that the loader works for.
        trial: The trial that the loader works for.
    """

    def __init__(
        self, settings: Settings | None, study: str | None = None, trial: int | None = None
    ) -> None:
        self._settings = settings
        self._parent = os.getpid()
        self._fields = {"study": study, "trial": trial}

    def __call__(self, _index: int) -> None:
        """Run in the loader process, before its first batch."""
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != self._parent:  # it died before the line above
                os._exit(EXIT_ORPHAN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
        if self._settings is not None:
            with suppress(redis.RedisError):  # a courtesy: the session already tells whose it is
                self._register(self._settings)

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
