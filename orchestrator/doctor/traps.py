"""Celery's settings under which messages, and with them trials, are lost.

Each was measured. A worker that is started as `celery -A workers worker` has none of them; a module
around it, or its command line, may.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

#: What a setting has to be, and what happens else.
EXACTLY: Final[Mapping[str, tuple[Any, str]]] = {
    "pool": ("prefork", "a slot is no process of its own"),
    "worker_pool_start_method": ("spawn", "CUDA does not work after a fork"),
    "task_acks_late": (True, "a killed worker loses its messages"),
    "task_reject_on_worker_lost": (True, "a killed process loses its message"),
    "worker_prefetch_multiplier": (1, "messages wait behind long trials"),
    "task_ignore_result": (True, "a trial that ends while Redis is away counts as failed"),
    "result_backend": (False, "a trial that ends while Redis is away counts as failed"),
    "task_always_eager": (False, "trials run where they are sent"),
    "task_soft_time_limit": (None, "an exception of Celery's ends a trial in its midst"),
    "task_time_limit": (None, "a trial is killed within 0.1 s, and saves nothing"),
    "task_serializer": ("json", "messages can carry code"),
    "accept_content": (["json"], "messages can carry code"),
    "worker_enable_remote_control": (False, "others can revoke trials"),
    "worker_hijack_root_logger": (False, "its log is not the fleet's"),
    "worker_redirect_stdouts": (False, "what trials print goes into the worker's log"),
    "broker_connection_max_retries": (None, "a worker ends when Redis is away for long"),
    "broker_connection_retry_on_startup": (True, "a worker does not wait for Redis at its start"),
    "worker_cancel_long_running_tasks_on_connection_loss": (
        False,
        "a connection that is lost takes the message along",
    ),
}

#: What a setting has to be at least, in seconds, and what happens else.
AT_LEAST: Final[Mapping[str, tuple[float, str]]] = {
    "worker_proc_alive_timeout": (60.0, "replacements that import torch are killed, for ever"),
    "visibility_timeout": (86400.0, "messages of long trials are sent again"),
}

#: Likewise, at most.
AT_MOST: Final[Mapping[str, tuple[float, str]]] = {
    "unacked_restore_interval": (60.0, "messages that a lost worker had are sent again late"),
    "unacked_restore_throttle": (60.0, "messages that a lost worker had are sent again late"),
}


class Trap(NamedTuple):
    """A setting of a worker under which trials are lost."""

    setting: str
    found: Any
    otherwise: str
    wanted: str


def fallen_into(celery: Mapping[str, Any]) -> Iterator[Trap]:
    """The traps that a worker's settings fall into; what it does not tell is none."""
    for setting, (wanted, otherwise) in EXACTLY.items():
        if setting in celery and celery[setting] != wanted:
            yield Trap(setting, celery[setting], otherwise, repr(wanted))
    for setting, (least, otherwise) in AT_LEAST.items():
        if setting in celery and float(celery[setting] or 0) < least:
            yield Trap(setting, celery[setting], otherwise, f"{least:.0f} or more")
    for setting, (most, otherwise) in AT_MOST.items():
        if setting in celery and not 0 < float(celery[setting] or 0) <= most:
            yield Trap(setting, celery[setting], otherwise, f"{most:.0f} or less")
