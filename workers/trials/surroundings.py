"""What an objective may change in its process, put back after the trial.

The next trial finds arguments, working directory, environment, import path, signal handlers, seeds,
threads of torch, logging, warnings and standard streams as they were. What cannot be put back (a
thread that goes on) is named: the process ends then, and a fresh one takes its place.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import os
import random
import signal
import socket
import sys
import sysconfig
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from weakref import WeakSet

import numpy as np
import psutil
import torch

from workers.logs import get_logger

log = get_logger(__name__)

#: How long what an objective started may take to end by itself.
_PATIENCE_SECONDS: Final = 1.0

#: Signals whose handlers and whose alarms an objective may set.
_SIGNALS: Final = tuple(
    number
    for number in (
        signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1,
        signal.SIGUSR2, signal.SIGCHLD, signal.SIGPIPE,
    )
)  # fmt: skip

_STANDARD_LIBRARY: Final = sysconfig.get_path("stdlib")

#: Children that libraries start for this process, not an objective for itself.
_LIBRARIES: Final = ("resource_tracker", "semaphore_tracker", "wandb-core", "wandb_core")


class Surroundings:
    """This process as it was when a trial began."""

    def __init__(self) -> None:
        self._restore: list[Callable[[], object]] = []
        self._threads: WeakSet[threading.Thread] = WeakSet()
        #: those among them that serve a library, which started them once for this process
        self._serving: WeakSet[threading.Thread] = WeakSet()
        self._spoiled: list[str] = []
        self._children = {child.pid for child in _children()}
        for remember in (
            _remember_interpreter, _remember_signals, _remember_seeds, _remember_torch,
            _remember_logging,
        ):  # fmt: skip
            self._restore += remember()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Take note of the threads that are started by the code of this block, here or in them."""
        start, owner = threading.Thread.start, threading.current_thread()

        def start_noted(thread: threading.Thread) -> None:
            if threading.current_thread() is owner or threading.current_thread() in self._threads:
                self._threads.add(thread)
                if thread.daemon and _is_of_a_library(sys._getframe(1).f_code.co_filename):
                    self._serving.add(thread)
            start(thread)

        threading.Thread.start = start_noted  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            threading.Thread.start = start  # type: ignore[method-assign]

    def spoil(self, reason: str) -> None:
        """Note that this process cannot be put right."""
        self._spoiled.append(reason)

    def restore(self) -> list[str]:
        """Put all back; what could not be, in words."""
        for undo in self._restore:
            try:
                undo()
            except Exception as error:  # noqa: BLE001 - each by itself; an objective may break any
                log.warning("surroundings_not_restored", error=f"{type(error).__name__}: {error}")
        self._end_children()
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

    def _end_children(self) -> None:
        """End processes that the objective left: they hold memory of the GPU, files, ports."""
        left = [child for child in _children() if child.pid not in self._children]
        for child in left:
            log.warning("child_left", child=child.pid)
            with suppress(psutil.Error):
                child.kill()
        psutil.wait_procs(left, _PATIENCE_SECONDS)


def _is_of_a_library(file: str) -> bool:
    """Whether code comes with Python or with an installed package."""
    return "site-packages" in file or file.startswith(_STANDARD_LIBRARY)


def _children() -> list[psutil.Process]:
    """The processes that this one has started, those of its libraries left out."""
    found = []
    for pid in _child_pids():
        with suppress(psutil.Error):
            child = psutil.Process(pid)
            if not any(name in " ".join(child.cmdline()) for name in _LIBRARIES):
                found.append(child)
    return found


def _child_pids() -> list[int]:
    """Asked of the kernel, which knows; looking through all processes takes milliseconds."""
    try:
        lists = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
    except OSError:
        lists = []
    if not lists:
        return [child.pid for child in psutil.Process().children()]
    return [int(pid) for text in lists for pid in text.split()]


def _remember_interpreter() -> list[Callable[[], object]]:
    environment, folder = dict(os.environ), Path.cwd()
    arguments, path, filters = list(sys.argv), list(sys.path), list(warnings.filters)
    streams = sys.stdin, sys.stdout, sys.stderr
    temporary, timeout = tempfile.tempdir, socket.getdefaulttimeout()
    start_method = multiprocessing.get_start_method(allow_none=True)
    os.umask(mask := os.umask(0o077))
    hooks = sys.excepthook, threading.excepthook
    limit, is_collecting = sys.getrecursionlimit(), gc.isenabled()

    def restore_lists() -> None:
        sys.argv[:], sys.path[:] = arguments, path
        warnings.filters[:] = filters  # type: ignore[index]
        sys.stdin, sys.stdout, sys.stderr = streams
        sys.excepthook, threading.excepthook = hooks

    return [
        lambda: _restore_environment(environment),
        lambda: os.chdir(folder),
        restore_lists,
        lambda: sys.setrecursionlimit(limit),
        lambda: setattr(tempfile, "tempdir", temporary),
        lambda: socket.setdefaulttimeout(timeout),
        lambda: multiprocessing.set_start_method(start_method, force=True),
        lambda: os.umask(mask),
        gc.enable if is_collecting else gc.disable,
        lambda: asyncio.set_event_loop(None),
    ]


def _restore_environment(environment: dict[str, str]) -> None:
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _remember_signals() -> list[Callable[[], object]]:
    if threading.current_thread() is not threading.main_thread():
        return []
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)

    return [restore]


def _remember_seeds() -> list[Callable[[], object]]:
    errors = np.geterr()
    python, numpy, on_cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    return [
        lambda: random.setstate(python),
        lambda: np.random.set_state(numpy),
        lambda: np.seterr(**errors),
        lambda: torch.set_rng_state(on_cpu),
    ]


def _remember_torch() -> list[Callable[[], object]]:
    num_threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    device, has_gradients = torch.get_default_device(), torch.is_grad_enabled()
    is_strict = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    precision, watches = torch.get_float32_matmul_precision(), torch.is_anomaly_enabled()
    benchmarks = torch.backends.cudnn.benchmark

    def restore_flags() -> None:
        torch.backends.cudnn.benchmark = benchmarks
        if torch.get_default_device() != device:
            torch.set_default_device(device)

    def restore_strictness() -> None:
        now = torch.are_deterministic_algorithms_enabled()
        warns_now = torch.is_deterministic_algorithms_warn_only_enabled()
        if (now, warns_now) != (is_strict, warns):  # the call imports a compiler, for seconds
            torch.use_deterministic_algorithms(is_strict, warn_only=warns)

    return [
        lambda: torch.set_num_threads(num_threads),
        lambda: torch.set_default_dtype(dtype),
        lambda: torch.set_grad_enabled(has_gradients),
        restore_strictness,
        lambda: torch.set_float32_matmul_precision(precision),
        lambda: torch.autograd.set_detect_anomaly(watches),
        restore_flags,
    ]


def _remember_logging() -> list[Callable[[], object]]:
    root = logging.getLogger()
    handlers, level, disabled = list(root.handlers), root.level, root.manager.disable

    known = {logger: (list(logger.handlers), logger.level) for logger in _loggers()}

    def restore() -> None:
        logging.disable(disabled)
        for logger in [root, *_loggers()]:
            before, threshold = (
                (handlers, level) if logger is root else known.get(logger, ([], logging.NOTSET))
            )
            added = [handler for handler in logger.handlers if handler not in before]
            logger.handlers[:] = before
            if logger.level != threshold:
                logger.setLevel(threshold)
            for handler in added:
                handler.close()

    return [restore]


def _loggers() -> list[logging.Logger]:
    """All loggers with a name."""
    found = list(logging.root.manager.loggerDict.values())
    return [logger for logger in found if isinstance(logger, logging.Logger)]
