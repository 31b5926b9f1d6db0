"""Opens the Optuna storage that holds a study's results: a journal file, or any RDB URL.

Invariant: only a driving orchestrator opens a storage for writing.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import BaseJournalBackend
from pydantic import ValidationError

from orchestrator.storage.attributes import IDENTITY_ATTR
from orchestrator.storage.folding import FoldedJournal
from orchestrator.storage.gathering import GatheringJournal
from orchestrator.storage.journal import JournalFile, JournalReader, broken_line, state_of_file
from workers.coordination.address import redact
from workers.protocol.errors import (
    FleetError,
    InvalidInputError,
    StorageUnreadableError,
    StudyExistsError,
    StudyNotKnownError,
)
from workers.protocol.plain import describe_error
from workers.protocol.spec import StudySpec
from workers.protocol.study_options import WarmStart
from workers.protocol.wider_space import is_same_in_wider_space
from workers.settings import Settings

_JOURNAL: Final = "journal://"

T = TypeVar("T")

#: How much of a journal's first log is looked at.
_FIRST_LOG_BYTES: Final = 1000


def storage_url(settings: Settings, study: str) -> str:
    """Where a study's results go: `FLEET_STORAGE`, else a journal of its own under the home."""
    return settings.storage_of(study)


def source_url(source: WarmStart, settings: Settings) -> str:
    """Where a study lies that another one starts from."""
    if source.storage is not None:
        return source.storage
    if source.home is not None:
        return f"{_JOURNAL}{journal_path(Path(source.home).expanduser(), source.study)}"
    return storage_url(settings, source.study)


def journal_path(home: Path, study: str) -> Path:
    """The journal of a study under a home."""
    return home / "studies" / study / "journal.log"


def journal_of(url: str) -> Path | None:
    """The journal that a storage is; None for a database."""
    return Path(url.removeprefix(_JOURNAL)) if url.startswith(_JOURNAL) else None


def stored_journals(home: Path) -> list[Path]:
    """The journals of all studies under a home."""
    return sorted(home.glob("studies/*/journal.log"))


#: The journal that this process read last, by URL, with its beginning: whoever looks at a study
#: looks again, and a long journal takes seconds to read.
_kept: dict[str, tuple[bytes, BaseStorage]] = {}
_kept_lock: Final = threading.Lock()


@dataclass(frozen=True)
class StudyStorage:
    """A storage that is open for writing."""

    storage: BaseStorage
    sync: Callable[[], None]
    """Brings all that was written to disk; a database has done so already."""
    close: Callable[[], None]
    gathering: Callable[[], AbstractContextManager[None]] = nullcontext
    """Has what is written meanwhile be written at once; a database writes as it comes."""
    is_ours_alone: bool = False
    """Whether nobody else can write it meanwhile, as anybody can a database."""

    @classmethod
    def open(cls, url: str) -> StudyStorage:
        """Open a storage for writing.

        Raises:
            InvalidInputError: Another orchestrator writes it, or it cannot be read.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if url.startswith(_JOURNAL):
            with _kept_lock:
                _kept.pop(url, None)  # one copy of a long journal in memory is enough
            path = Path(url.removeprefix(_JOURNAL))
            journal = JournalFile(path)
            gathering = GatheringJournal(journal)
            try:
                replayed = journal_storage(gathering)
            except (FleetError, OSError):
                journal.close()
                raise
            except Exception as error:
                journal.close()
                raise InvalidInputError(_unreadable(path, error)) from error
            return cls(
                replayed, gathering.sync, gathering.close, gathering.gathering, is_ours_alone=True
            )
        from orchestrator.storage.databases import (  # it imports SQLAlchemy
            close_written,
            open_to_write,
        )

        database = _open_database(url, open_to_write)
        is_open = [True]

        def close() -> None:
            if is_open:
                is_open.clear()
                close_written(database, url)

        return cls(database, lambda: None, close)

    def raise_fence(self, name: str) -> None:
        """Have no other opening of a study's storage write any more; a journal has its lock."""
        if isinstance(self.storage, optuna.storages.RDBStorage):
            from orchestrator.storage.database_fence import raise_fence  # it imports SQLAlchemy

            raise_fence(self.storage, self.storage.get_study_id_from_name(name), name)

    def count_trials(self, name: str) -> int:
        """How many trials a study has; 0 if there is no such study."""
        try:
            study_id = self.storage.get_study_id_from_name(name)
        except KeyError:
            return 0
        return self.storage.get_n_trials(study_id)


def open_reader(url: str) -> BaseStorage | None:
    """A storage to read from, or None if there is none (yet): no journal, no tables.

    Raises:
        StorageUnreadableError: What lies there is no journal, or one that is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not url.startswith(_JOURNAL):
        from orchestrator.storage.databases import open_to_read  # it imports SQLAlchemy

        return _open_database(url, open_to_read)
    path = Path(url.removeprefix(_JOURNAL))
    if not path.exists():
        return None
    try:
        return journal_storage(JournalReader(path))
    except (FleetError, OSError):
        raise
    except Exception as error:
        raise StorageUnreadableError(_unreadable(path, error)) from error


def _unreadable(journal: Path, error: Exception) -> str:
    """What is to be said of a journal that Optuna does not take."""
    number = broken_line(journal)
    if number is None:
        return f"{journal} cannot be read: {describe_error(error, 200)}; mend it, or move it away"
    return (
        f"{journal} cannot be read: line {number} is no entry of Optuna's journal; mend that line"
        " or take it out, or move the journal away"
    )


def _kept_reader(url: str) -> BaseStorage | None:
    """Like `open_reader`, with a journal that this process has just read only read on."""
    if not url.startswith(_JOURNAL):
        return open_reader(url)
    with _kept_lock:
        try:
            beginning = _beginning(Path(url.removeprefix(_JOURNAL)))
        except FileNotFoundError:
            return None
        kept = _kept.pop(url, None)
        storage = kept[1] if kept is not None and kept[0] == beginning else open_reader(url)
        _kept.clear()
        if storage is not None and beginning:
            _kept[url] = (beginning, storage)
        return storage


def _beginning(journal: Path) -> bytes:
    """What no other journal begins with: its first log has the random id of who wrote it."""
    state_of_file(journal)
    with journal.open("rb") as file:
        return file.readline(_FIRST_LOG_BYTES)


def load_readonly(url: str, name: str) -> optuna.Study:
    """A study as it is now, not to be written to.

    Raises:
        StudyNotKnownError: The storage is not here, or does not know the study.
    """
    storage = _kept_reader(url)
    if storage is not None:
        try:
            return optuna.load_study(study_name=name, storage=storage)
        except KeyError:
            pass
    raise StudyNotKnownError(
        f"study {name!r} is not known: neither a running fleet nor {url} has it; see `trialfleet"
        " studies`, and set FLEET_HOME or FLEET_STORAGE as the orchestrator has them"
    )


def create_or_load_study(
    spec: StudySpec, storage: BaseStorage, sampler: BaseSampler, pruner: BasePruner
) -> optuna.Study:
    """The study of a specification, made if it is not there.

    Raises:
        StudyExistsError: The name stands for a study with other settings.
    """
    study = optuna.create_study(
        study_name=spec.name,
        storage=storage,
        directions=spec.all_directions,
        sampler=sampler,
        pruner=pruner,
        load_if_exists=True,
    )
    known = study.user_attrs.get(IDENTITY_ATTR)
    if known is None:
        if study.get_trials(deepcopy=False):
            raise StudyExistsError(
                f"study {spec.name!r} was not made by trialfleet; choose another name"
            )
        study.set_user_attr(IDENTITY_ATTR, json.dumps(spec.identity()))
        if len(spec.metrics) == len(spec.all_directions):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(spec.metrics)
    else:
        check_same_spec(spec, json.loads(known))
    return study


def stored_identity(url: str, name: str) -> dict[str, Any] | None:
    """What the storage knows of the study of that name, or None."""
    storage = _kept_reader(url)
    if storage is None:
        return None
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return None
    known = study.user_attrs.get(IDENTITY_ATTR)
    return None if known is None else dict(json.loads(known))


def check_same_spec(spec: StudySpec, known: dict[str, Any]) -> None:
    """Hold a specification against the identity of the study that has its name.

    Raises:
        StudyExistsError: They differ; the message names the first difference.
    """
    wanted = json.loads(json.dumps(spec.identity()))
    with suppress(ValidationError):  # of a release that is none of ours: as it stands
        known = json.loads(json.dumps(StudySpec.read(known).identity()))
    # as text: NaN is unlike itself
    if json.dumps(wanted, sort_keys=True) != json.dumps(known, sort_keys=True):
        path, before, now = _first_difference(known, wanted, spec.name)
        if path == "code.package" and before and now:
            raise StudyExistsError(
                f"study {spec.name!r} exists with other code (package {before[:12]}, and now it is"
                f" {now[:12]}): what ships is part of a study; choose another `name`, or set its"
                " files back"
            )
        raise StudyExistsError(
            f"study {spec.name!r} exists with {path} = {json.dumps(before)}, and now it is"
            f" {json.dumps(now)}; choose another `name`, or set it back{_way_to_widen(spec, known)}"
        )


def _way_to_widen(spec: StudySpec, known: dict[str, Any]) -> str:
    """What else there is to do, where only the space differs and is wider."""
    with suppress(ValidationError):
        if is_same_in_wider_space(StudySpec.read(known), spec):
            return f"; `trialfleet extend {spec.name} --space FILE` takes the wider space"
    return ""


def _first_difference(before: Any, now: Any, path: str, prefix: str = "") -> tuple[str, Any, Any]:
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return prefix or path, before, now
    for key in [*now, *before]:
        if before.get(key) != now.get(key):
            below = f"{prefix}.{key}" if prefix else str(key)
            return _first_difference(before.get(key), now.get(key), path, below)
    return prefix or path, before, now


def journal_storage(backend: BaseJournalBackend) -> JournalStorage:
    """A storage on a journal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return JournalStorage(FoldedJournal(backend))


def is_database_error(error: Exception) -> bool:
    """Whether a database failed, and not the study."""
    if isinstance(error, optuna.exceptions.StorageInternalError):
        return True
    return type(error).__module__.startswith("sqlalchemy")  # without importing it


def refuses_value(error: BaseException) -> bool:
    """Whether a storage works, and does not take what it was given."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, (ValueError, TypeError, OverflowError, RecursionError)):
            return True
        is_database = type(found).__module__.startswith("sqlalchemy")
        if is_database and type(found).__name__ in {"DataError", "IntegrityError"}:
            return True
        found = found.__cause__
    return False


def _open_database(url: str, open_it: Callable[[str], T]) -> T:
    if url.partition("://")[2].partition("/")[0].count("@") > 1:
        # SQLAlchemy takes what follows the first one for the host, and names it in its errors
        raise InvalidInputError(
            f"FLEET_STORAGE = {redact(url)}: its user or password has an '@': write that as %40"
        )
    try:
        return open_it(url)
    except ImportError as error:
        _refuse(url, error, "install the database's driver")
    except Exception as error:
        if is_database_error(error):
            _refuse(url, error, "write an SQLAlchemy URL such as postgresql://user@host/db")
        if isinstance(error, RuntimeError):  # tables of another release of Optuna's
            _refuse(url, error, "or set FLEET_STORAGE to another database")
        raise


def _refuse(url: str, error: Exception, way_out: str) -> NoReturn:
    first = str(error).splitlines()[0]
    raise InvalidInputError(f"FLEET_STORAGE = {redact(url)}: {first}; {way_out}") from error
