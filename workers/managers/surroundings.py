"""What an objective, or a data set, may change in its process, put back after the trial.

The next trial finds the process as it was (`process_state.py`), without threads and children of the
one before. What cannot be put back (a thread that goes on) is named: the process ends then, and a
fresh one takes its place.

Invariant: where nothing was named, the process is as it was before its first trial.
"""

from __future__ import annotations

import gc
import os
import sys
import sysconfig
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from weakref import WeakSet

import psutil
import torch

from workers.logs import get_logger
from workers.managers.process_state import remember

log = get_logger(__name__)

#: How long what an objective started may take to end by itself.
_PATIENCE_SECONDS: Final = 1.0

_STANDARD_LIBRARY: Final = sysconfig.get_path("stdlib")

#: Children that libraries start for this process, not an objective for itself.
_LIBRARIES: Final = (
    "resource_tracker", "semaphore_tracker", "wandb-core", "wandb_core",
    "torch_shm_manager",  # memory that others still use is gone with it
)  # fmt: skip


class Surroundings:
    """This process as it was before its first trial; after each one it is put back."""

    def __init__(self) -> None:
        self._before = remember()
        self._threads: WeakSet[threading.Thread] = WeakSet()
        #: those among them that serve a library, which started them once for this process
        self._serving: WeakSet[threading.Thread] = WeakSet()
        self._spoiled: list[str] = []
        self._children = {child.pid for child in _children()}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Take note of what the code of this block does that leaves no other trace.

        Threads that are started, here or in them; the one call that torch takes in a process.
        """
        self._threads, self._serving = WeakSet(), WeakSet()
        start, owner = threading.Thread.start, threading.current_thread()
        set_interop = torch.set_num_interop_threads

        def start_noted(thread: threading.Thread) -> None:
            if threading.current_thread() is owner or threading.current_thread() in self._threads:
                self._threads.add(thread)
                if thread.daemon and is_of_a_library(sys._getframe(1).f_code.co_filename):
                    self._serving.add(thread)
            start(thread)

        def set_interop_noted(nthreads: int) -> None:
            set_interop(nthreads)
            self.spoil("torch.set_num_interop_threads was called")

        threading.Thread.start = start_noted  # type: ignore[method-assign, assignment]
        torch.set_num_interop_threads = set_interop_noted
        try:
            yield
        finally:
            threading.Thread.start = start  # type: ignore[method-assign]
            torch.set_num_interop_threads = set_interop

    def spoil(self, reason: str) -> None:
        """Note that this process cannot be put right."""
        self._spoiled.append(reason)

    def restore(self, spared: Collection[int] = ()) -> list[str]:
        """Put all back; what could not be, in words.

        Args:
            spared: Pids of children that are not the objective's.
        """
        for each in self._before:
            try:
                each.restore()
            except Exception as error:  # noqa: BLE001 - each by itself; an objective may break any
                reason = f"{type(error).__name__}: {error}"
                self.spoil(f"{each.what} could not be put back ({reason})")
        self._end_children(spared)
        lasting = [f"thread {thread.name!r} goes on" for thread in self._lasting_threads()]
        return self._spoiled + lasting

    def _lasting_threads(self) -> list[threading.Thread]:
        with suppress(ImportError, AttributeError):
            from tqdm import tqdm  # type: ignore[import-untyped]

            if tqdm.monitor is not None and tqdm.monitor in self._threads:
                tqdm.monitor.exit()  # it looks after bars that are gone
                tqdm.monitor = None
        if any(thread.is_alive() for thread in self._threads):
            gc.collect()  # a pool of threads ends with the last that knows it
        for thread in set(self._threads) - set(self._serving):
            thread.join(_PATIENCE_SECONDS)
        return [each for each in self._threads if each.is_alive() and each not in self._serving]

    def _end_children(self, spared: Collection[int]) -> None:
        """End processes that the objective left: they hold memory of the GPU, files, ports."""
        if not _has_children():
            return
        others = self._children.union(spared)
        left = [child for child in _children() if child.pid not in others]
        for child in left:
            log.warning("child_left", child=child.pid)
            with suppress(psutil.Error):
                child.kill()
        psutil.wait_procs(left, _PATIENCE_SECONDS)


def is_of_a_library(file: str) -> bool:
    """Whether code comes with Python or with an installed package."""
    is_installed = "site-packages" in file or "dist-packages" in file
    return is_installed or file.startswith(_STANDARD_LIBRARY)


def _has_children() -> bool:
    """Whether this process has started one that it has not waited for; maybe, where none tells."""
    if sys.platform != "linux":
        return True
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _children() -> list[psutil.Process]:
    """The processes that this one has started, those of its libraries left out."""
    found = []
    for pid in child_pids():
        with suppress(psutil.Error):
            child = psutil.Process(pid)
            if not any(name in " ".join(child.cmdline()) for name in _LIBRARIES):
                found.append(child)
    return found


def child_pids(parent: int | None = None) -> list[int]:
    """The processes that one has started, by default this one.

    Asked of the kernel, which knows; looking through all processes takes milliseconds.

    Raises:
        psutil.NoSuchProcess: There is no such one.
    """
    tasks = Path("/proc") / ("self" if parent is None else str(parent)) / "task"
    try:
        lists = [path.read_text() for path in tasks.glob("*/children")]
    except OSError:
        lists = []
    if not lists:
        return [child.pid for child in psutil.Process(parent).children()]
    return [int(pid) for text in lists for pid in text.split()]
