"""Submitting a study: checked as a whole, compared with what is known, then written in one step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

import redis

from orchestrator.handle import StudyHandle
from orchestrator.storage.former_trials import complete_trials
from orchestrator.storage.opening import check_same_spec, storage_url, stored_identity
from orchestrator.storage.place import is_gone as is_gone_from_here
from orchestrator.submission.former_fit import told_of_former
from orchestrator.submission.handed_in_again import changes_told, wish_told
from orchestrator.submission.hub_commits import with_commits
from orchestrator.submission.model_check import kept_checks
from orchestrator.submission.preflight import check
from orchestrator.submission.shipping import told_of, unpacked, with_package
from orchestrator.submission.submitted_code import with_code
from workers.coordination.connection import connect
from workers.coordination.deletions import Deletions
from workers.coordination.packages import Packages
from workers.coordination.rights import Role
from workers.coordination.studies import Studies, ensure_epoch
from workers.disk.fleet_home import FleetHome, make_home
from workers.importing import refuse_while_importing
from workers.logs import get_logger
from workers.processes.registry import ProcessEntry, ProcessRegistry
from workers.protocol.errors import InvalidInputError, StudyNotKnownError, UnsealedError
from workers.protocol.packages import Package
from workers.protocol.spec import StudySpec
from workers.protocol.states import ProcessKind
from workers.protocol.wider_space import in_order_of, is_same_in_wider_space
from workers.settings import Settings

log = get_logger(__name__)


def submit(
    spec: StudySpec,
    settings: Settings | None = None,
    *,
    import_directory: Path | None = None,
    tell: Callable[[str], None] | None = None,
) -> StudyHandle:
    """Hand a study to the fleet; one that is known is extended if it is the same otherwise.

    Args:
        spec: The study.
        settings: Where the fleet is; by default the environment's.
        import_directory: Where the objective's module lies, beside the import path.
        tell: Told what people should know of the study; by default, the log is.

    Raises:
        InvalidInputError: The study cannot run, or the home belongs to another fleet; nothing was
            enqueued.
        StudyExistsError: The name stands for a study with other settings.
        RedisUnavailableError: The fleet's Redis does not answer.
    """
    refuse_while_importing("hands in a study")
    settings = settings or Settings.from_environment()
    found = prepared(spec, settings, import_directory=import_directory, tell=tell)
    return hand_in(found, settings, tell=tell)


class Prepared(NamedTuple):
    """A study that was checked as a whole, with what travels with it."""

    spec: StudySpec
    """With the commits of what it reads from a hub."""
    package: Package | None
    """The code that travels with it, if any does."""


def hand_in(
    study: Prepared,
    settings: Settings,
    *,
    by_run: bool = False,
    tell: Callable[[str], None] | None = None,
) -> StudyHandle:
    """Hand a study that was checked to the fleet.

    Args:
        study: The study.
        settings: Where the fleet is.
        by_run: For `trialfleet run` alone, until somebody submits it otherwise.
        tell: Told what is other than it was; by default, the log is.

    Raises:
        InvalidInputError: The home belongs to another fleet, or the study is being deleted.
        UnsealedError: The fleet takes only what is signed, by another secret than this place's.
        StudyExistsError: The name stands for a study with other settings.
        RedisUnavailableError: The fleet's Redis does not answer.
    """
    client = connect(settings, Role.USER)
    try:
        FleetHome(client, settings.home).join()
        _hand_in(client, study.spec, study.package, settings, by_run=by_run, tell=tell or _log)
    finally:
        client.close()
    return StudyHandle(study.spec.name, settings)


def _hand_in(
    client: redis.Redis,
    spec: StudySpec,
    package: Package | None,
    settings: Settings,
    *,
    by_run: bool,
    tell: Callable[[str], None],
) -> None:
    """Compare a study with what is known of its name, and write it."""
    studies, deletions = Studies(client, seal=settings.seal), Deletions(client)
    _refuse_while_deleted(deletions, spec.name)
    _refuse_unsigned(ProcessRegistry(client, settings.times).entries(), spec.name, settings)
    is_gone = is_gone_from_here(settings, spec.name, studies.origin(spec.name))
    notes: list[str] = []

    def as_known(text: str | None) -> StudySpec:
        if text is None or is_gone:
            return spec
        known = studies.read_text(spec.name, text)  # one that is not signed is, by this
        found = _as_known(studies, spec, known, settings)
        facts = studies.facts
        is_current = facts.get(spec.name, "status_of") in {None, known.digest()}
        status = facts.get(spec.name, "status") if is_current else None
        notes[:] = changes_told(known, found, status)
        return found

    is_known = (text := studies.text(spec.name)) is not None and not is_gone
    as_known(text)  # before anything is shipped
    of_former = _check_source(spec, settings, studies)
    ensure_epoch(client)
    deletions.revoke(spec.name)
    packages, former = Packages(client, settings.seal), _package_of(client, spec.name)
    studies.refuse_to_unseal(spec.name)  # before the seal of its package goes
    if package is not None:
        packages.ship(spec.name, package)
    try:
        before = studies.wish(spec.name)
        wish = studies.hand_in(spec.name, as_known, by_run=by_run, keeps_pause=not by_run)
    except Exception:
        if package is not None:
            _take_back(packages, client, spec.name, package.digest)
        raise
    if former not in {None, spec.code.package}:  # of a study whose results are gone
        packages.drop(spec.name, former)
    if is_gone:
        studies.facts.forget(spec.name)
    # former trials are taken when a study begins
    notes += wish_told(spec.name, before, wish) if is_known else of_former
    for note in notes:
        tell(note)


def _refuse_while_deleted(deletions: Deletions, name: str) -> None:
    if deletions.is_begun(name):
        raise InvalidInputError(
            f"study {name!r} is being deleted; wait for that, or have it completed by"
            f" `trialfleet delete {name}`"
        )


def _refuse_unsigned(processes: Iterable[ProcessEntry], study: str, settings: Settings) -> None:
    """Refuse what no orchestrator that is there would take.

    Raises:
        UnsealedError: They take only what is signed, and not with the secret of this place.
    """
    own = settings.seal.marks()[:1]
    taken = [
        entry.membership.secrets
        for entry in processes
        if entry.membership is not None
        and entry.kind is ProcessKind.ORCHESTRATOR
        and entry.drives in {None, study}
    ]
    if not taken or any(not secrets or set(own) & set(secrets) for secrets in taken):
        return
    how = "another FLEET_SECRET is set here" if own else "there is no FLEET_SECRET here"
    raise UnsealedError(
        f"study {study!r}: this fleet's orchestrator takes only signed studies, and {how}: set the"
        " fleet's, and hand it in again"
    )


def _as_known(studies: Studies, spec: StudySpec, known: StudySpec, settings: Settings) -> StudySpec:
    """A study that goes on, with the hub's commits and the order of choices that it has.

    Raises:
        StudyExistsError: The name stands for a study with other settings.
    """
    if _is_trusted(studies, spec.name):
        spec = with_commits(spec, known.config)
    _check_known(spec, known, settings)
    return spec.model_copy(update={"space": in_order_of(known.space, spec.space)})


def prepared(
    spec: StudySpec,
    settings: Settings,
    *,
    import_directory: Path | None = None,
    tell: Callable[[str], None] | None = None,
) -> Prepared:
    """Check a study as a whole: each thing that may be wrong with it, once.

    Args:
        spec: The study.
        settings: Where its storage is.
        import_directory: Where the objective's module lies, beside the import path.
        tell: Told what people should know of the study's data; by default, the log is.

    Raises:
        InvalidInputError: It cannot run.
        StudyExistsError: The storage has another one under its name.
        RemoteUnavailableError: A hub or a file share did not answer, whatever was tried.
    """
    make_home(settings.home)  # before anything below it is
    known = stored_identity(storage_url(settings, spec.name), spec.name)
    spec = with_commits(spec, None if known is None else known.get("config"))
    spec, package = with_package(spec, import_directory or Path.cwd(), settings.code_size)
    if package is None:
        spec = with_code(spec, import_directory)
    # as workers see it: in what it ships, if it ships
    seeing: AbstractContextManager[tuple[StudySpec, Path | None]]
    seeing = nullcontext((spec, import_directory))
    if package is not None:
        seeing = unpacked(spec, package, settings.code_size)
    with seeing as (seen, directory):
        if package is not None and directory is not None:
            (tell or _log_code)(told_of(directory))
        findings = check(
            seen,
            import_directory=directory,
            home=settings.home,
            cache=kept_checks(settings),
            samplers=settings.samplers,
        )
    for finding in findings:
        (tell or _log)(finding)
    if known is not None:
        check_same_spec(spec, known)
    return Prepared(spec, package)


def _check_known(spec: StudySpec, known: StudySpec, settings: Settings) -> None:
    """Hold a study against what Redis knows of it.

    Its storage, if it is here, has it as it is now: of that, Redis may lack that its space has
    become wider since.
    """
    is_stored = stored_identity(storage_url(settings, spec.name), spec.name) is not None
    if is_stored and is_same_in_wider_space(known, spec):
        known = known.model_copy(update={"space": spec.space})
    check_same_spec(spec, known.identity())


def _take_back(packages: Packages, client: redis.Redis, name: str, digest: str) -> None:
    """Have a package go that was shipped for a study that was not taken, and is no other's."""
    with suppress(redis.RedisError):  # what is wrong is told already
        if _package_of(client, name) != digest:
            packages.drop(name, digest)


def _package_of(client: redis.Redis, name: str) -> str | None:
    """The code that travels with a study as Redis has it, if it is there and can be read."""
    try:
        return Studies(client).spec(name).code.package
    except InvalidInputError:
        return None


def _is_trusted(studies: Studies, name: str) -> bool:
    """Whether what Redis has of a study was written by this fleet, as far as that can be told."""
    try:
        studies.spec(name)
    except UnsealedError:
        return False
    return True


def _check_source(spec: StudySpec, settings: Settings, studies: Studies) -> list[str]:
    """Refuse a warm start from a study that is not there, or goes elsewhere.

    Where the results are on another machine, its orchestrator looks.

    Returns:
        What people should know of it.
    """
    source = spec.warm_start
    if source is None:
        return []
    if source.home is not None and not Path(source.home).expanduser().exists():
        return []
    try:
        return told_of_former(complete_trials(spec, settings), spec)
    except StudyNotKnownError:
        if source.home or source.storage or not studies.exists(source.study):
            raise
    return []


def _log_code(told: str) -> None:
    log.info("code_travels", told=told)


def _log(finding: str) -> None:
    log.warning("data_finding", finding=finding)
