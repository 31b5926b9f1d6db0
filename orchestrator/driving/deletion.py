"""Deleting a study: its results, what Redis holds of it, and then its name.

Invariant: only who has the right to drive the study deletes it, and only when nobody runs a trial
of it; a deletion that is broken off anywhere is done by whoever tries it next.
"""

from __future__ import annotations

import redis

from orchestrator.storage.removal import remove_results
from workers.coordination.clock import server_time_ms
from workers.coordination.deletions import Deletions
from workers.coordination.identity import ProcessIdentity
from workers.coordination.studies import Studies
from workers.coordination.study_lead import StudyLead
from workers.logs import get_logger
from workers.settings import Settings

log = get_logger(__name__)


def try_delete(client: redis.Redis, settings: Settings, name: str, owner: ProcessIdentity) -> bool:
    """Delete a study whose deletion was begun, if that can be now; whether it is done.

    Args:
        client: The fleet's Redis, with an orchestrator's rights.
        settings: Those of the orchestrator that keeps the results.
        name: The study.
        owner: This process.

    Raises:
        InvalidInputError: Its results are kept elsewhere.
    """
    studies = Studies(client)
    if has_running(client, name):
        return False
    right = StudyLead(client, name, owner, settings.times.lease)
    if not right.hold():
        return False
    try:
        remove_results(settings, name, studies.origin(name))
        Deletions(client).finish(name)
    finally:
        right.release()
    log.info("study_deleted", study=name)
    return True


def has_running(client: redis.Redis, name: str) -> bool:
    """Whether somebody may be running a trial of a study."""
    now_ms = server_time_ms(client)
    return any(deadline > now_ms for deadline in Studies(client).leases(name).running().values())
