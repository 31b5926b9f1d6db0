"""Submitting a study: checked as a whole, compared with what is known, then written in one step."""

from __future__ import annotations

from pathlib import Path

from orchestrator.handle import StudyHandle
from orchestrator.model_check import kept_checks
from orchestrator.preflight import check
from orchestrator.storage import check_same_spec, storage_url, stored_identity
from workers.coordination.connection import connect
from workers.coordination.studies import Studies, ensure_epoch
from workers.disk.fleet_home import FleetHome
from workers.importing import refuse_while_importing
from workers.protocol.spec import StudySpec
from workers.settings import Settings


def submit(
    spec: StudySpec, settings: Settings | None = None, *, import_directory: Path | None = None
) -> StudyHandle:
    """Hand a study to the fleet; one that is known is extended if it is the same otherwise.

    Args:
        spec: The study.
        settings: Where the fleet is; by default the environment's.
        import_directory: Where the objective's module lies, beside the import path.

    Raises:
        InvalidInputError: The study cannot run, or the home belongs to another fleet; nothing was
            enqueued.
        StudyExistsError: The name stands for a study with other settings.
        RedisUnavailableError: The fleet's Redis does not answer.
    """
    refuse_while_importing("hands in a study")
    settings = settings or Settings.from_environment()
    check(
        spec,
        import_directory=import_directory,
        home=settings.home,
        cache=kept_checks(settings),
    )
    check_name(spec, settings)
    client = connect(settings)
    try:
        FleetHome(client, settings.home).join()
        studies = Studies(client)
        if studies.exists(spec.name):
            check_same_spec(spec, studies.spec(spec.name).identity())
        ensure_epoch(client)
        studies.submit(spec, storage_url(settings, spec.name))
    finally:
        client.close()
    return StudyHandle(spec.name, settings)


def check_name(spec: StudySpec, settings: Settings) -> None:
    """Hold a study against the one that the storage has under its name, if any.

    Raises:
        StudyExistsError: They differ in more than may be extended.
    """
    known = stored_identity(storage_url(settings, spec.name), spec.name)
    if known is not None:
        check_same_spec(spec, known)
