"""The state of this process that an objective may change: how to read it, and how to put it back.

Invariant: what was not changed is not touched; what cannot be put back raises.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import asyncio
import decimal
import gc
import locale
import logging
import multiprocessing
import os
import random
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any, Final

import numpy as np
import torch


@dataclass(frozen=True)
class Remembered:
    """One thing as it was."""

    what: str
    restore: Callable[[], object]
    """Puts it back, or raises."""
    is_unchanged: Callable[[], bool] = lambda: False
    """Whether it is as it was."""


@dataclass(frozen=True)
class _Setting:
    """A thing that can be read and set."""

    what: str
    get: Callable[[], Any]
    put: Callable[[Any], object]
    """Is called after each trial with the same value, and leaves nothing of that to be changed."""

    def remember(self) -> Remembered | None:
        """The thing as it is; None where it cannot be read, as a working directory that is gone."""
        try:
            before = self.get()
        except Exception:  # noqa: BLE001 - each by itself
            return None
        return Remembered(
            self.what,
            lambda: None if self._is(before) else self.put(before),
            partial(self._is, before),
        )

    def _is(self, before: Any) -> bool:
        try:
            return bool(self.get() == before)
        except Exception:  # noqa: BLE001 - arrays, say, and what the objective made unreadable
            return False


#: `signal.getsignal` makes an enumeration of each answer, which takes ten times as long.
_getsignal: Final = _signal.getsignal

#: Signals whose handlers and whose alarms an objective may set.
_SIGNALS: Final = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGCHLD, signal.SIGPIPE,
)  # fmt: skip

_LIMITS: Final = tuple(
    getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")
)

#: What of torch chooses how to compute in 32 bits.
_PRECISIONS: Final = (
    "cuda.matmul", "cudnn", "cudnn.conv", "cudnn.rnn", "mkldnn", "mkldnn.conv", "mkldnn.matmul",
    "mkldnn.rnn",
)  # fmt: skip

#: What of products in half precision may be added up in it.
_MATMULS: Final = (
    "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction",
    "allow_fp16_accumulation",
)  # fmt: skip

#: Ways in which torch computes attention.
_ATTENTIONS: Final = ("flash", "mem_efficient", "math", "cudnn")


def remember_settings() -> list[Remembered]:
    """Of what is put back after a trial, what is a setting, and neither drawn nor opened."""
    settings = [*_interpreter(), *_process(), *_numbers(), *_torch()]
    found = [setting.remember() for setting in settings]
    return [each for each in found if each is not None]


def remember() -> list[Remembered]:
    """All that is put back after a trial, as it is now."""
    return [
        *remember_settings(),
        *_remember_generators(),
        Remembered("standard output", _remember_streams()),
        Remembered("signal handlers", _remember_signals()),
        Remembered("loggers", _remember_loggers()),
        Remembered("the event loop", lambda: asyncio.set_event_loop(None)),
        Remembered("the process group of torch.distributed", _end_process_group),
        Remembered("accelerate's state", _forget_accelerate),
    ]


def _attribute(owner: Any, name: str) -> _Setting:
    label = f"{getattr(owner, '__name__', type(owner).__name__)}.{name}"
    return _Setting(label, lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


def _list(owner: Any, name: str) -> _Setting:
    """A list that others hold, too: its content is put back."""

    def put(before: list[Any]) -> None:
        getattr(owner, name)[:] = before

    return _Setting(f"{owner.__name__}.{name}", lambda: list(getattr(owner, name)), put)


def _interpreter() -> Iterator[_Setting]:
    # not the finders of modules: what was imported by one of a library stays, and needs it
    yield from (_list(sys, name) for name in ("argv", "path"))
    yield _list(warnings, "filters")
    for owner, name in [
        (sys, "stdin"), (sys, "excepthook"), (sys, "displayhook"), (threading, "excepthook"),
        (tempfile, "tempdir"),
    ]:  # fmt: skip
        yield _attribute(owner, name)
    yield _Setting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit)
    yield _Setting("the trace function", sys.gettrace, sys.settrace)
    yield _Setting("the profile function", sys.getprofile, sys.setprofile)
    yield _Setting("the digits of integers", sys.get_int_max_str_digits, sys.set_int_max_str_digits)
    yield _Setting("collection", gc.isenabled, lambda on: gc.enable() if on else gc.disable())
    yield _Setting(
        "the thresholds of collection", gc.get_threshold, lambda before: gc.set_threshold(*before)
    )
    yield _Setting(
        "the start method of multiprocessing",
        partial(multiprocessing.get_start_method, allow_none=True),
        partial(multiprocessing.set_start_method, force=True),
    )


def _process() -> Iterator[_Setting]:
    yield _Setting("the environment", environment, _set_environment)
    yield _Setting("the working directory", os.getcwd, os.chdir)
    yield _Setting("the umask", _umask, os.umask)
    yield _Setting("the time-out of sockets", socket.getdefaulttimeout, socket.setdefaulttimeout)
    yield _Setting(
        "the locale",
        partial(locale.setlocale, locale.LC_ALL),
        partial(locale.setlocale, locale.LC_ALL),
    )
    yield _Setting(
        "the priority",
        partial(os.getpriority, os.PRIO_PROCESS, 0),
        partial(os.setpriority, os.PRIO_PROCESS, 0),
    )
    yield _Setting("limits of resources", limits, _set_limits)
    if sys.platform == "linux":
        yield _Setting("the cores", partial(os.sched_getaffinity, 0), _set_affinity)


def _remember_generators() -> Iterator[Remembered]:
    # put back unasked: reading one takes longer
    yield Remembered("Python's generator", partial(random.setstate, random.getstate()))
    yield Remembered("NumPy's generator", partial(np.random.set_state, np.random.get_state()))
    yield Remembered("torch's generator", partial(torch.set_rng_state, torch.get_rng_state()))


def _numbers() -> Iterator[_Setting]:
    yield _Setting("NumPy's errors", np.geterr, lambda before: np.seterr(**before))
    yield _Setting(
        "NumPy's print options",
        np.get_printoptions,
        lambda before: np.set_printoptions(**before),
    )
    # what is put back is changed in place by the next trial
    yield _Setting(
        "the decimal context",
        lambda: decimal.getcontext().copy(),
        lambda before: decimal.setcontext(before.copy()),
    )


def _torch() -> Iterator[_Setting]:
    yield _Setting("torch's threads", torch.get_num_threads, torch.set_num_threads)
    # torch takes one call in the life of a process
    yield _Setting(
        "torch's inter-op threads", torch.get_num_interop_threads, torch.set_num_interop_threads
    )
    yield _Setting("torch's type", torch.get_default_dtype, torch.set_default_dtype)
    yield _Setting("torch's device", torch.get_default_device, _set_device)
    yield _Setting("gradients", torch.is_grad_enabled, torch.set_grad_enabled)
    yield _Setting("determinism", _determinism, _set_determinism)
    yield _Setting(
        "torch's watch for anomalies",
        torch.is_anomaly_enabled,
        torch.autograd.set_detect_anomaly,
    )
    yield _Setting(
        "how tensors are shared",
        torch.multiprocessing.get_sharing_strategy,
        torch.multiprocessing.set_sharing_strategy,
    )
    yield _Setting(
        "the precision of matrix products",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    )
    for path in _PRECISIONS:
        owner: Any = torch.backends
        for part in path.split("."):
            owner = getattr(owner, part, None)
        yield _attribute(owner, "fp32_precision")
    yield from (
        _attribute(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")
    )
    yield from (_attribute(torch.backends.cuda.matmul, name) for name in _MATMULS)
    for name in _ATTENTIONS:
        yield _Setting(
            f"attention by {name}",
            getattr(torch.backends.cuda, f"{name}_sdp_enabled"),
            getattr(torch.backends.cuda, f"enable_{name}_sdp"),
        )
    yield _Setting("whether denormals are zero", _flushes_denormals, torch.set_flush_denormal)


def _flushes_denormals() -> bool:
    return float(torch.tensor(1e-310, dtype=torch.float64) * 1.0) == 0.0


def _remember_streams() -> Callable[[], None]:
    before = sys.stdout, sys.stderr

    def restore() -> None:
        sys.stdout, sys.stderr = before
        for stream in before:
            if stream is not None and stream.closed:
                raise ValueError(f"{stream.name} is closed")

    return restore


def environment() -> dict[bytes, bytes]:
    """The environment, encoded."""
    # as it is held: to read it by name encodes and decodes each, which takes ten times as long
    return dict(os.environ._data)  # type: ignore[attr-defined]


def _set_environment(encoded: dict[bytes, bytes]) -> None:
    before = {os.fsdecode(name): os.fsdecode(value) for name, value in encoded.items()}
    zone = os.environ.get("TZ")
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(
        {name: value for name, value in before.items() if os.environ.get(name) != value}
    )
    if zone != before.get("TZ"):
        time.tzset()


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def limits() -> list[tuple[int, int]]:
    """The limits of resources, soft and hard."""
    return [resource.getrlimit(limit) for limit in _LIMITS]


def _set_limits(before: list[tuple[int, int]]) -> None:
    for limit, values in zip(_LIMITS, before, strict=True):
        if resource.getrlimit(limit) != values:
            resource.setrlimit(limit, values)


def _set_affinity(cores: set[int]) -> None:
    os.sched_setaffinity(0, cores)


def _set_device(device: torch.device) -> None:
    # one that is named is a mode that each call goes through
    torch.set_default_device(None if device.type == "cpu" else device)


def _determinism() -> tuple[bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def _set_determinism(before: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _end_process_group() -> None:
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _forget_accelerate() -> None:
    """Have the next `Accelerator` be set up by itself; there is one state a process."""
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.GradientState._reset_state()
        state.AcceleratorState._reset_state(reset_partial_state=True)


def _remember_signals() -> Callable[[], None]:
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    handlers = [(number, _getsignal(number)) for number in map(int, _SIGNALS)]

    def restore() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in handlers:
            if handler is not None and _getsignal(number) is not handler:
                signal.signal(number, handler)

    return restore


def _remember_loggers() -> Callable[[], None]:
    root = logging.getLogger()
    disabled = root.manager.disable
    known = {logger: (list(logger.handlers), logger.level) for logger in [root, *_loggers()]}
    unknown: tuple[list[logging.Handler], int] = ([], logging.NOTSET)
    looked_at = dict(root.manager.loggerDict)
    state, as_before = attrgetter("handlers", "level"), list(known.values())

    def restore() -> None:
        nonlocal looked_at, as_before
        if root.manager.disable != disabled:
            logging.disable(disabled)
        if root.manager.loggerDict != looked_at:
            looked_at = dict(root.manager.loggerDict)
            for logger in _loggers():
                known.setdefault(logger, unknown)
            as_before = list(known.values())
        if list(map(state, known)) == as_before:  # of hundreds, all at once
            return
        for logger, (before, threshold) in known.items():
            if state(logger) == (before, threshold):
                continue
            added = [handler for handler in logger.handlers if handler not in before]
            logger.handlers[:] = before
            if logger.level != threshold:
                logger.setLevel(threshold)
            for handler in added:
                with suppress(Exception):  # it is the objective's, and nobody's any more
                    handler.close()

    return restore


def _loggers() -> list[logging.Logger]:
    """All loggers with a name."""
    found = list(logging.root.manager.loggerDict.values())
    return [logger for logger in found if isinstance(logger, logging.Logger)]
