"""A loader process that was killed under an attempt: by the system, which lacks memory, or by hand.

What the objective raises then is torch's word for it, or any error of a pipe that broke off, and
is no fault of the objective's.

Invariant: what a loader raises is the objective's own, and so is how it exits; a signal that ended
it is not, unless torch sent it to one that it had no more use for.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from traceback import walk_tb
from typing import Final

from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from workers.protocol.plain import describe_error
from workers.trials.advice import shown_chain

#: As torch tells of one that it has started itself, wherever the objective is just then.
_KILLED: Final = re.compile(r"DataLoader worker \(pid (\d+)\) is killed by signal: (.+?)\. ")

#: What the system calls signals, and what people do.
_NAMES: Final = {signal.strsignal(each): each.name for each in signal.Signals}

#: How torch tells of one that had ended when a batch was waited for.
_ENDED: Final = "exited unexpectedly"

#: Characters of an error's text that are searched for these.
_MAX_TEXT: Final = 10_000

#: Where torch waits for a batch.
_TAKING: Final = "_get_data"

#: A pipe breaks a moment before its process is known to have ended.
_SECONDS_TO_END: Final = 2.0


@dataclass(frozen=True, slots=True)
class DeadLoader:
    """One that was killed."""

    pid: int
    signal: str
    """Its name, such as SIGKILL."""
    was_survived: bool = False
    """Whether the objective went on without it, and raised something else in the end."""

    def __str__(self) -> str:
        return f"loader process {self.pid} was ended by {self.signal}"

    @property
    def advice(self) -> str:
        """What may have led to it, and the way out; empty where the signal says it all."""
        if self.signal != signal.SIGKILL.name:
            return ""
        return (
            " (the system does that where memory is short: fewer loader processes need less, as do"
            " smaller batches)"
        )


def dead_loader(error: BaseException) -> DeadLoader | None:
    """The loader process whose end led to an error; None where it has another cause."""
    dead = _told_of(error) or _seen_in(error)
    if dead is None:
        return None
    text = describe_error(error, _MAX_TEXT)
    is_of_it = _ENDED in text or _KILLED.search(text) or next(_asked(error), None) is not None
    return dead if is_of_it else replace(dead, was_survived=True)


def _told_of(error: BaseException) -> DeadLoader | None:
    """The loader process that torch names."""
    for each in shown_chain(error):
        told = _KILLED.search(describe_error(each, _MAX_TEXT))
        if told is not None:
            return DeadLoader(int(told[1]), _NAMES.get(told[2], told[2]))
    return None


def _seen_in(error: BaseException) -> DeadLoader | None:
    """The first one that was killed of the loaders that were waited for."""
    for each in shown_chain(error):
        for loader in _asked(each):
            try:
                process = _killed(loader, each)
            except RuntimeError as news:  # by torch's handler of SIGCHLD
                return _told_of(news)
            if process is not None:
                return DeadLoader(process.pid or 0, _name(-(process.exitcode or 0)))
    return None


def _asked(error: BaseException) -> Iterator[_MultiProcessingDataLoaderIter]:
    """Each DataLoader that was waited for when something was raised."""
    for frame, _ in walk_tb(error.__traceback__):
        if frame.f_code.co_name == _TAKING:
            its = frame.f_locals.get("self")
            if isinstance(its, _MultiProcessingDataLoaderIter):
                yield its


def _killed(loader: _MultiProcessingDataLoaderIter, error: BaseException) -> BaseProcess | None:
    """The process of a DataLoader that a signal ended, as soon as it is known; None if none was.

    Raises:
        RuntimeError: By torch, which learns of it meanwhile.
    """
    until = time.monotonic() + _SECONDS_TO_END
    # torch ends those that do not leave when they are to
    is_over = loader._shutdown and _ENDED not in describe_error(error, _MAX_TEXT)
    spared = {-signal.SIGTERM} if is_over else set()
    while True:
        codes = {process: process.exitcode for process in loader._workers if _is_open(process)}
        for process, code in codes.items():
            if code is not None and code < 0 and code not in spared:
                return process
        # of those that have read all their rows, some have ended long ago
        at_work = [process.sentinel for process, code in codes.items() if code is None]
        if not at_work or not wait(at_work, until - time.monotonic()):
            return None


def _is_open(process: BaseProcess) -> bool:
    """Whether a process was started, and is known to this one."""
    with suppress(ValueError):  # it was closed
        return process.pid is not None
    return False


def _name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
