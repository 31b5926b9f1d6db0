"""What the members of a fleet must agree on, as each tells it in its record.

Invariant: of a secret nothing is told that a seal in Redis does not tell anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from workers.settings import Settings

#: Celery's settings that decide whether messages and trials are lost; told as the worker has them,
#: whatever its environment, its command line or a module around it have made of them.
TOLD_OF_CELERY: Final = (
    "accept_content", "task_acks_late", "task_always_eager", "task_ignore_result",
    "task_reject_on_worker_lost", "task_serializer", "task_time_limit",
    "worker_cancel_long_running_tasks_on_connection_loss", "worker_enable_remote_control",
    "worker_hijack_root_logger", "worker_pool_start_method", "worker_prefetch_multiplier",
    "worker_proc_alive_timeout", "result_backend", "task_soft_time_limit",
    "worker_redirect_stdouts", "broker_connection_max_retries",
    "broker_connection_retry_on_startup",
)  # fmt: skip

#: Likewise, of what carries messages.
TOLD_OF_TRANSPORT: Final = (
    "visibility_timeout", "unacked_restore_interval", "unacked_restore_throttle",
)  # fmt: skip


class Membership(BaseModel):
    """Release, secrets and configuration of one member."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    release: str
    #: The marks of its secrets: the first signs, all are accepted.
    secrets: list[str] = []
    #: Of a worker: `TOLD_OF_CELERY`, `TOLD_OF_TRANSPORT` and `pool`.
    celery: dict[str, Any] = {}


def membership(settings: Settings, celery: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields of a record by which a member tells it."""
    told = Membership(
        release=version("trialfleet"), secrets=settings.seal.marks(), celery=dict(celery or {})
    )
    return {"membership": told.model_dump(mode="json")}


def celery_of(worker: Any) -> dict[str, Any]:
    """What a Celery worker runs with."""
    conf = worker.app.conf
    told = {name: getattr(conf, name) for name in TOLD_OF_CELERY}
    told["accept_content"] = sorted(map(str, told["accept_content"]))
    told["result_backend"] = bool(told["result_backend"])  # it may be a URL with a password
    told |= {name: conf.broker_transport_options.get(name) for name in TOLD_OF_TRANSPORT}
    told["pool"] = str(worker.pool_cls.__module__).rpartition(".")[2]
    return told
