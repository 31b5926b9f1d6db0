"""A loader process that was killed under an attempt: by the system, which lacks memory, or by hand.

What the objective raises then is torch's word for it, or any error of a pipe that broke off, and
is no fault of the objective's.

Invariant: what a loader raises is the objective's own, and so is how it exits; a signal that ended
it is not.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from traceback import walk_tb
from typing import Final

from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from workers.trials.advice import shown_chain

#: As torch tells of one that it has started itself, wherever the objective is just then.
_KILLED: Final = re.compile(r"DataLoader worker \(pid (\d+)\) is killed by signal: ([\w ]+?)\.")

#: What the system calls signals, and what people do.
_NAMES: Final = {signal.strsignal(each): each.name for each in signal.Signals}

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
    for each in shown_chain(error):
        told = _KILLED.search(str(each))
        if told is not None:
            return DeadLoader(int(told[1]), _NAMES.get(told[2], told[2]))
    for loader in _asked(error):
        wait([each.sentinel for each in loader], _SECONDS_TO_END)
        for process in loader:
            if (process.exitcode or 0) < 0:
                return DeadLoader(process.pid or 0, _name(-(process.exitcode or 0)))
    return None


def _asked(error: BaseException) -> Iterator[list[BaseProcess]]:
    """The processes of each DataLoader that was waited for when something was raised."""
    for each in shown_chain(error):
        for frame, _ in walk_tb(each.__traceback__):
            its = frame.f_locals.get("self")
            if frame.f_code.co_name == _TAKING and isinstance(its, _MultiProcessingDataLoaderIter):
                yield [process for process in its._workers if process.pid is not None]


def _name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
