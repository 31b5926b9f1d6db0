"""`trialfleet delete`: asks the fleet to delete a study, and does it itself where no fleet runs.

Invariant: what is asked for stays asked for: killed anywhere, the next orchestrator, or the same
command, completes it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import redis

from orchestrator.driving.deletion import has_running, try_delete
from orchestrator.local.run import exclusive
from orchestrator.local.servers import EmbeddedRedis
from orchestrator.storage.known_studies import known_studies
from workers.coordination.connection import connect, is_at_rest
from workers.coordination.deletions import Deletions
from workers.coordination.identity import ProcessIdentity
from workers.coordination.rights import Role
from workers.coordination.studies import Studies
from workers.disk.fleet_home import FleetHome
from workers.disk.study_folders import studies_in
from workers.processes.registry import ProcessRegistry
from workers.protocol.errors import (
    FleetError,
    InvalidInputError,
    RedisUnavailableError,
    RightsMissingError,
    StudyNotKnownError,
    nearest,
)
from workers.protocol.states import ProcessKind
from workers.settings import Settings

#: How long an orchestrator that runs may take before this process tries by itself.
_GRACE_SECONDS: Final = 5.0

#: How long it is waited for: trials that run may take the grace of a cancellation.
_PATIENCE_SECONDS: Final = 90.0


def delete_study(name: str, settings: Settings | None = None, *, cancels: bool = False) -> None:
    """Delete a study: its results, checkpoints, what Redis holds of it, and then its name.

    Args:
        name: The study.
        settings: Where the fleet is; by default the environment's.
        cancels: Whether trials that run are ended first.

    Raises:
        StudyNotKnownError: There is no such study.
        InvalidInputError: Trials of it run, or its results are kept elsewhere.
        FleetError: It is not done yet; it will be.
    """
    with _fleet(settings or Settings.from_environment()) as (client, own):
        deletions = Deletions(client)
        if not deletions.is_begun(name):
            _check(name, own, client, cancels=cancels)
            deletions.begin(name)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        may_try_at = time.monotonic() + (_GRACE_SECONDS if _is_served(client, own) else 0.0)
        while deletions.is_begun(name):
            if time.monotonic() >= may_try_at and _try(name, own):
                return
            if time.monotonic() > deadline:
                raise FleetError(
                    f"study {name!r} is not deleted yet: {_reason(client, name)}; an orchestrator"
                    " completes it, or the same command again"
                )
            time.sleep(0.1)


def _check(name: str, settings: Settings, client: redis.Redis, *, cancels: bool) -> None:
    """Refuse to delete what is not there, or what somebody works on."""
    is_known = Studies(client).exists(name) or bool(studies_in(settings.home, [name]))
    known = known_studies(settings)
    if not is_known and name not in known:
        raise StudyNotKnownError(f"study {name!r} is not known{nearest(name, known)}")
    entries = ProcessRegistry(client, settings.times).entries()
    held = sorted(
        entry.trial for entry in entries if entry.study == name and entry.trial is not None
    )
    if held and not cancels:
        raise InvalidInputError(
            f"study {name!r}: trials {', '.join(map(str, held))} run; `trialfleet cancel {name}`"
            " ends them, and so does --cancel"
        )


@contextmanager
def _fleet(settings: Settings) -> Iterator[tuple[redis.Redis, Settings]]:
    """The fleet's Redis; the embedded one is started where nobody runs it."""
    try:
        client = connect(settings, Role.USER)
    except RedisUnavailableError as error:
        if not is_at_rest(error, settings):
            raise
        with exclusive(settings.home), EmbeddedRedis(settings.home) as server:
            own = settings.model_copy(update={"redis_url": server.url})
            client = connect(own, Role.USER)
            with _closing(client):
                yield client, own
        return
    with _closing(client):
        yield client, settings


@contextmanager
def _closing(client: redis.Redis) -> Iterator[None]:
    try:
        yield
    finally:
        client.close()


def _is_served(client: redis.Redis, settings: Settings) -> bool:
    """Whether an orchestrator runs, which may do it."""
    entries = ProcessRegistry(client, settings.times).entries()
    return any(entry.kind is ProcessKind.ORCHESTRATOR for entry in entries)


def _try(name: str, settings: Settings) -> bool:
    """Delete it from here; False where that is an orchestrator's to do."""
    with suppress(RightsMissingError):
        client = connect(settings, Role.ORCHESTRATOR)
        with _closing(client):
            FleetHome(client, settings.home).join()
            return try_delete(client, settings, name, ProcessIdentity.current())
    return False


def _reason(client: redis.Redis, name: str) -> str:
    with suppress(redis.RedisError):
        if has_running(client, name):
            return "trials of it have not ended"
    return "no orchestrator that may do it has answered"
