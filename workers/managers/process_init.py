"""The managers of this process: one container, opened once, closed once, never shared by a fork.

Each manager opens when it is first asked for: a process that only reads data starts neither CUDA
nor W&B. A process of the fleet's own opens them all before its first task.
"""

from __future__ import annotations

import atexit
import multiprocessing.util
import os
import signal
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any

from workers.containers import Container
from workers.processes.registry import ProcessRecord
from workers.protocol.errors import ForeignProcessError, NotInitializedError
from workers.settings import Settings

Config = Settings | Mapping[str, Any] | None

_WAY_OUT = (
    "call workers.managers.process_init.ensure_process_initialized(config) as the first line of"
    " the process"
)

_container: Container | None = None


def initialize_factory(config: Config = None) -> Container:
    """Give this process its managers; once, in the main process.

    Closed at exit and on SIGTERM (unless the program handles SIGTERM itself). A second call in
    the same process returns the container that is open.

    Args:
        config: Settings, a mapping of their fields, or None for the environment's.

    Raises:
        InvalidInputError: `config` holds what a setting does not take.
    """
    return ensure_process_initialized(config)


def ensure_process_initialized(
    config: Config = None, *, record: ProcessRecord | None = None
) -> Container:
    """Give this process managers of its own; the first line of any child process; idempotent.

    Each opens when it is first asked for; with a `record`, all of them now. Managers inherited by
    a fork are dropped, neither used nor closed.

    Args:
        config: Settings, a mapping of their fields, or None for the environment's.
        record: The process's entry in the registry; by default one that is written nowhere.

    Raises:
        InvalidInputError: `config` holds what a setting does not take.
    """
    global _container
    if _container is not None and _container.is_open_here:
        return _container
    from workers.managers import MANAGERS

    container = Container(MANAGERS, [Settings.build(config), record or ProcessRecord()])
    _container = container.open_as_asked() if record is None else container.open()
    _close_at_exit()
    return _container


def current_container() -> Container:
    """The container of this process.

    Raises:
        NotInitializedError: There is none.
        ForeignProcessError: There is one, inherited from another process by a fork.
    """
    if _container is None:
        raise NotInitializedError(f"this process ({os.getpid()}) has no managers; {_WAY_OUT}")
    if not _container.is_open_here:
        raise ForeignProcessError(
            f"the managers in this process ({os.getpid()}) were inherited from its parent by a"
            f" fork; {_WAY_OUT}"
        )
    return _container


def cleanup_managers() -> None:
    """Close this process's managers, the last opened first. Safe to call twice."""
    global _container
    container, _container = _container, None
    if container is not None:
        container.close()


def _close_at_exit() -> None:
    atexit.register(cleanup_managers)
    # multiprocessing's children leave by os._exit and run only these
    multiprocessing.util.Finalize(None, cleanup_managers, exitpriority=100)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _close_and_die)


def _close_and_die(number: int, _frame: FrameType | None) -> None:
    try:
        cleanup_managers()
    finally:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
