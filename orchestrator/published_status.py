"""A study's status as the orchestrator last published it, with what changed since.

Invariant: what people asked of a study is seen at once, also where no orchestrator has looked at it
since.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import redis

from orchestrator.status import StudyStatus
from orchestrator.status_building import as_extended, build_status, unfinished_state
from orchestrator.storage.tally import Tally
from orchestrator.views.obstacles import obstacles
from orchestrator.views.other_code import other_code
from workers.coordination.studies import Studies
from workers.processes.registry import ProcessEntry, ProcessRegistry
from workers.protocol.spec import StudySpec
from workers.times import Times


def published_status(client: redis.Redis, name: str, times: Times) -> StudyStatus | None:
    """What the fleet's Redis tells of a study; None if it does not know it.

    Raises:
        redis.RedisError: Redis is away, or refuses.
        ValueError, TypeError, RecursionError, redis.ResponseError: What it holds cannot be read.
    """
    studies = Studies(client)
    if not studies.exists(name):
        return None
    spec = studies.spec(name)
    found = _as_asked(_shown(studies, spec), studies, spec)
    stalled = studies.facts.get(name, "stalled")
    entries = list(ProcessRegistry(client, times).entries())
    found = found.model_copy(update={"stalled": None if stalled is None else str(stalled)})
    waits_for = [*found.waits_for, *_obstacles(found, studies, spec, entries, times.lease)]
    return found.model_copy(
        update={"other_code": other_code(spec, entries), "waits_for": waits_for}
    )


def _shown(studies: Studies, spec: StudySpec) -> StudyStatus:
    """What was published; of a study that no orchestrator has looked at, that nothing has begun."""
    status: Any = studies.facts.get(spec.name, "status")
    if status is None:
        return build_status(spec, Tally(spec.all_directions))
    return StudyStatus.model_validate(status)


def _as_asked(shown: StudyStatus, studies: Studies, spec: StudySpec) -> StudyStatus:
    """The same with what was asked of the study since."""
    wish = studies.wish(spec.name)
    if shown.is_over and studies.facts.get(spec.name, "over") is not None:
        return shown
    now: dict[str, Any] = {"state": unfinished_state(wish), "wish": wish}
    is_of = studies.facts.get(spec.name, "status_of")
    is_changed = is_of is not None and is_of != spec.digest()
    if shown.is_over or is_changed:
        now |= {"ended_by": None, "limit": None}
    if is_changed:
        now |= as_extended(shown, spec)
    return shown.model_copy(update=now)


def _obstacles(
    found: StudyStatus,
    studies: Studies,
    spec: StudySpec,
    entries: Sequence[ProcessEntry],
    lease_seconds: float,
) -> list[str]:
    shown_seconds = studies.facts.shown_seconds(spec.name)
    if shown_seconds is None and found.as_of is not None:  # shown by an earlier release
        shown_seconds = time.time() - found.as_of
    # it has been looked at, and is not any more
    is_left = studies.is_by_run(spec.name) and (shown_seconds or 0.0) > lease_seconds
    return obstacles(
        spec,
        found,
        entries,
        left_by_run=is_left,
        shown_seconds=shown_seconds,
        lease_seconds=lease_seconds,
        has_orders=studies.orders.are_left(spec.name),
    )
