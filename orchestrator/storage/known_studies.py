"""The names of all studies that a fleet and its storage know, for one that was misspelt."""

from __future__ import annotations

from contextlib import suppress

from orchestrator.storage.attributes import is_beside
from orchestrator.storage.opening import open_reader, storage_url, stored_journals
from workers.coordination.connection import connect
from workers.coordination.rights import Role
from workers.coordination.studies import Studies
from workers.protocol.errors import FleetError
from workers.settings import Settings


def known_studies(settings: Settings) -> list[str]:
    """The names, as far as Redis and the storage can be read."""
    found: set[str] = set()
    with suppress(FleetError):
        found.update(_in_redis(settings))
    with suppress(FleetError):
        found.update(stored_studies(settings))
    return sorted(name for name in found if not is_beside(name))


def stored_studies(settings: Settings) -> list[str]:
    """The names of those of which the storage has results, by name.

    Raises:
        FleetError: The storage cannot be read.
    """
    return sorted(name for name in _in_storage(settings) if not is_beside(name))


def kept_beside(settings: Settings, name: str) -> list[str]:
    """The studies of a storage that hold a study's trials as they were, and go with it."""
    with suppress(FleetError):
        storage = open_reader(storage_url(settings, name))
        found = [] if storage is None else [each.study_name for each in storage.get_all_studies()]
        return sorted(each for each in found if each.startswith(f"{name}@"))
    return []


def _in_redis(settings: Settings) -> list[str]:
    client = connect(settings, Role.VIEWER)
    try:
        return Studies(client).names()
    finally:
        client.close()


def _in_storage(settings: Settings) -> list[str]:
    if settings.storage is None:
        return [path.parent.name for path in stored_journals(settings.home)]
    storage = open_reader(settings.storage)
    return [] if storage is None else [each.study_name for each in storage.get_all_studies()]
