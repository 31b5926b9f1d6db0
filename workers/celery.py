"""The Celery app that `celery -A workers worker` finds, with settings that lose nothing.

Invariant: importing this module imports neither torch nor any manager; the worker's main process
never does.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from celery import Celery

from workers.coordination.address import parse_address
from workers.coordination.connection import resolve_url
from workers.coordination.hints import BROKER_SETTINGS
from workers.installed import refuse_if_missing
from workers.passwords import hide
from workers.protocol.errors import InvalidInputError
from workers.settings import Settings

#: The exit code of a process whose environment cannot be used.
EXIT_BAD_INPUT: Final = 2


def worker_settings() -> dict[str, Any]:
    """Celery's settings for this environment; read when the worker starts, not on import.

    Raises:
        SystemExit: The environment cannot be used; one line on stderr says why.
    """
    try:
        refuse_if_missing()
        settings = Settings.from_environment()
        address = parse_address(resolve_url(settings))
    except InvalidInputError as error:
        sys.stderr.write(hide(f"worker: {error}\n"))
        raise SystemExit(EXIT_BAD_INPUT) from None
    return {
        **BROKER_SETTINGS,
        **address.broker_settings(BROKER_SETTINGS["broker_transport_options"]),
        "worker_concurrency": settings.slots or default_slots(),
        # children start as fresh interpreters: CUDA cannot be used after a fork
        "worker_pool_start_method": "spawn",
        # the default (4 s) kills every replacement that imports torch, for ever
        "worker_proc_alive_timeout": 300.0,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "worker_enable_remote_control": False,
        # not needed for anything here: for those who look on with Celery's own tools
        "worker_send_task_events": settings.celery_events,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        # rights that somebody took away come back: a refusal is waited out like a lost connection
        "broker_channel_error_retry": True,
        # would lose the message of a trial that outlives the connection
        "worker_cancel_long_running_tasks_on_connection_loss": False,
    }


def default_slots() -> int:
    """One slot a GPU that no other worker has; on a box without one, two if it has the cores."""
    from workers.processes.cores import count_cores
    from workers.processes.gpu_slots import count_free_gpus

    return count_free_gpus() or min(2, count_cores())


app = Celery("trialfleet", include=["workers.tasks"])
app.add_defaults(worker_settings)
