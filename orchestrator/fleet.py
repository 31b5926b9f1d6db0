"""A fleet, as a script or a command sees it: its studies and its processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import redis

from orchestrator.handle import StudyHandle
from orchestrator.status import StudyStatus, UnreadableRecord, UnreadableStudy
from orchestrator.status_building import stored_status
from orchestrator.storage.known_studies import stored_studies
from workers.coordination.connection import connect as connect_redis
from workers.coordination.connection import is_at_rest
from workers.coordination.rights import Role
from workers.coordination.studies import Studies
from workers.processes.registry import ProcessEntry, ProcessRegistry
from workers.protocol.errors import FleetError, RedisUnavailableError
from workers.protocol.plain import describe_error
from workers.settings import Settings


@dataclass(frozen=True)
class Fleet:
    """A connection to a fleet's Redis, to look; close it, or use it as a context manager."""

    settings: Settings
    client: redis.Redis

    def studies(self) -> list[StudyHandle]:
        """All submitted studies, by name."""
        return [StudyHandle(name, self.settings) for name in Studies(self.client).names()]

    def statuses(self) -> list[StudyStatus | UnreadableStudy]:
        """The status of each study, by name; of one that cannot be read, why."""
        return [_status_or_reason(handle) for handle in self.studies()]

    def study(self, name: str) -> StudyHandle:
        """One study.

        Raises:
            InvalidInputError: The fleet does not know it.
        """
        Studies(self.client).spec(name)
        return StudyHandle(name, self.settings)

    def processes(self) -> list[ProcessEntry]:
        """All live processes of the fleet."""
        return self.process_records()[0]

    def process_records(self) -> tuple[list[ProcessEntry], list[UnreadableRecord]]:
        """All live processes, and the records of such that this release cannot read."""
        registry = ProcessRegistry(self.client, self.settings.times)
        entries = list(registry.entries())
        unreadable = [UnreadableRecord(*each) for each in sorted(registry.unreadable.items())]
        return entries, unreadable

    def close(self) -> None:
        """Close the connection."""
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _status_or_reason(handle: StudyHandle) -> StudyStatus | UnreadableStudy:
    try:
        return handle.status()
    except RedisUnavailableError:
        raise
    except FleetError as error:
        return UnreadableStudy(study=handle.name, reason=str(error))


def connect(redis_url: str | None = None) -> Fleet:
    """Connect to a fleet.

    Args:
        redis_url: Its Redis; by default what the environment says.

    Raises:
        RedisUnavailableError: It does not answer.
    """
    settings = Settings.from_environment()
    if redis_url is not None:
        settings = settings.model_copy(update={"redis_url": redis_url})
    return Fleet(settings, connect_redis(settings, Role.VIEWER))


def statuses_at_hand() -> list[StudyStatus | UnreadableStudy]:
    """The status of each study, by name; where no `FLEET_REDIS_URL` is set, of the storage's, too.

    Raises:
        RedisUnavailableError: `FLEET_REDIS_URL` is set and does not answer.
        FleetError: There is none, and the storage cannot be read.
    """
    settings = Settings.from_environment()
    found: dict[str, StudyStatus | UnreadableStudy] = {}
    try:
        with connect() as fleet:
            found = {each.study: each for each in fleet.statuses()}
    except RedisUnavailableError as error:
        if not is_at_rest(error, settings):
            raise
    if not settings.redis_url:
        # an embedded server runs only as long as its study; what answers may be anybody's
        stored = {name: _stored_or_reason(name, settings) for name in stored_studies(settings)}
        found = {**stored, **found}
    return [found[name] for name in sorted(found)]


def _stored_or_reason(name: str, settings: Settings) -> StudyStatus | UnreadableStudy:
    try:
        return stored_status(name, settings)
    except FleetError as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - whatever reading a damaged journal comes to
        reason = f"its results cannot be read ({describe_error(error, 200)})"
    return UnreadableStudy(study=name, reason=reason)
