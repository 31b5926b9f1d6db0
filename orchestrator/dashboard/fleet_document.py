"""The fleet as the page shows it: hosts, processes, leases, and its studies in one line each.

Invariant: where Redis is away, the document says so and names the studies that this home has.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, Final

import redis

from orchestrator.dashboard.answers import trouble
from orchestrator.fleet import Fleet
from orchestrator.status import StudyStatus, UnreadableStudy
from orchestrator.storage.known_studies import known_studies
from workers.coordination.connection import is_at_rest
from workers.coordination.kept_connection import KeptConnection
from workers.processes.registry import ProcessEntry
from workers.protocol.errors import FleetError, RedisUnavailableError
from workers.settings import Settings

#: What a line of the list of studies is made of.
_LISTED: Final = frozenset(
    {
        "study", "state", "wish", "objective", "metrics", "directions", "wanted", "trials", "best",
        "slots", "wall_seconds", "busy_seconds", "stalled", "waits_for", "front", "losses",
        "ended_by",
    }
)  # fmt: skip

#: What of a process is shown; where its scratch lies and what it is called in memory is not.
_OF_A_PROCESS: Final = frozenset(
    {
        "kind", "parent", "lease_left_seconds", "study", "trial", "gpu", "activity", "aside",
        "slots", "queues", "started_at", "is_draining", "stalled",
    }
)  # fmt: skip


def fleet_document(settings: Settings, connection: KeptConnection) -> dict[str, Any]:
    """All hosts and studies now."""
    try:
        with connection.use() as client:
            fleet = Fleet(settings, client)
            entries, unreadable = fleet.process_records()
            return {
                "as_of": time.time(),
                "trouble": None,
                "at_rest": False,
                "lease_seconds": settings.times.lease,
                "processes": [_process(entry) for entry in entries],
                "unreadable": [each._asdict() for each in unreadable],
                "studies": [_study(status) for status in fleet.statuses()],
            }
    except (RedisUnavailableError, redis.RedisError) as error:
        message = trouble(error)["error"]["message"]
        return {
            "as_of": time.time(),
            "trouble": message,
            "at_rest": isinstance(error, RedisUnavailableError) and is_at_rest(error, settings),
            "lease_seconds": settings.times.lease,
            "processes": [],
            "unreadable": [],
            "studies": [{"study": name, "state": "at rest"} for name in _stored(settings)],
        }


def _stored(settings: Settings) -> list[str]:
    with suppress(FleetError, OSError):
        return known_studies(settings)
    return []


def _process(entry: ProcessEntry) -> dict[str, Any]:
    document = entry.model_dump(mode="json", include=set(_OF_A_PROCESS))
    return {**document, "host": entry.identity.host, "pid": entry.identity.pid}


def _study(status: StudyStatus | UnreadableStudy) -> dict[str, Any]:
    if isinstance(status, UnreadableStudy):
        return status.model_dump(mode="json")
    return status.model_dump(mode="json", include=set(_LISTED))
