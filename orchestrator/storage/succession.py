"""Puts a study in the place of one of the same name, which is kept beside it as `NAME@1`, `NAME@2`.

A journal is written anew beside the old one and takes its path; a database changes both names in
one transaction.

Invariant: whenever this is broken off, the storage holds the one study or the other under the name,
whole; what was begun is dropped by the next try.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from orchestrator.storage.attributes import FORMER_ATTR, narrower_name
from orchestrator.storage.journal import JournalFile
from orchestrator.storage.opening import StudyStorage, journal_of, journal_storage

#: How the name of a study ends that is not whole yet.
_DRAFT: Final = "@draft"

#: In the names of the attributes in which genetic samplers keep a generation's parents, by the ids
#: of their trials.
_PARENTS: Final = ":parent:"


@dataclass(frozen=True)
class Snapshot:
    """A study, as a storage holds it."""

    directions: Sequence[StudyDirection]
    user_attrs: Mapping[str, Any]
    system_attrs: Mapping[str, Any]
    trials: Sequence[FrozenTrial]

    @classmethod
    def of(cls, storage: BaseStorage, name: str) -> Snapshot:
        """Read a study.

        Raises:
            KeyError: There is no such study.
        """
        study_id = storage.get_study_id_from_name(name)
        return cls(
            storage.get_study_directions(study_id),
            storage.get_study_user_attrs(study_id),
            storage.get_study_system_attrs(study_id),
            storage.get_all_trials(study_id, deepcopy=False),
        )

    def write(self, storage: BaseStorage, name: str) -> None:
        """Write it under another name, or into another storage; the trials keep their numbers."""
        study_id = storage.create_new_study(self.directions, name)
        for key, value in self.user_attrs.items():
            storage.set_study_user_attr(study_id, key, value)
        ids = {
            trial._trial_id: storage.create_new_trial(study_id, template_trial=trial)
            for trial in self.trials
        }
        for key, value in self.system_attrs.items():
            is_parents = _PARENTS in key and isinstance(value, list)
            written = [ids.get(each, each) for each in value] if is_parents else value
            storage.set_study_system_attr(study_id, key, written)


#: Makes the study that is to be out of the one that there is, while nobody else can write it.
Succession: TypeAlias = Callable[[Snapshot], Snapshot]


def succeed(url: str, name: str, succession: Succession) -> str:
    """Put a study in the place of one of its name; the name under which that one is kept.

    Args:
        url: Their storage, which nobody has open for writing.
        name: Theirs.
        succession: Makes the new one.

    Raises:
        InvalidInputError: Somebody writes the storage.
    """
    path = journal_of(url)
    if path is None:
        return _in_database(url, name, succession)
    return _in_journal(path, name, succession)


def former_of(storage: BaseStorage, name: str) -> str | None:
    """The name of the study whose place a study took; None where it took none."""
    try:
        study_id = storage.get_study_id_from_name(name)
    except KeyError:
        return None
    return storage.get_study_user_attrs(study_id).get(FORMER_ATTR)


def _in_journal(path: Path, name: str, succession: Succession) -> str:
    own = JournalFile(path)
    try:
        before = journal_storage(own)
        names = [study.study_name for study in before.get_all_studies()]
        former = _free_name(name, names)
        beside_it = path.with_name(f"{path.name}{_DRAFT}")
        beside_it.unlink(missing_ok=True)
        draft = JournalFile(beside_it)
        try:
            after = journal_storage(draft)
            _noting(succession(Snapshot.of(before, name)), former).write(after, name)
            for each in names:
                kept = Snapshot.of(before, each)
                kept.write(after, former if each == name else each)
            draft.put_in_place_of(own)
        finally:
            draft.close()
    finally:
        own.close()
    return former


def _in_database(url: str, name: str, succession: Succession) -> str:
    opened = StudyStorage.open(url)
    try:
        storage = opened.storage
        opened.raise_fence(name)  # whoever stood still meanwhile writes nothing more
        names = [study.study_name for study in storage.get_all_studies()]
        former, draft = _free_name(name, names), f"{name}{_DRAFT}"
        if draft in names:
            storage.delete_study(storage.get_study_id_from_name(draft))
        _noting(succession(Snapshot.of(storage, name)), former).write(storage, draft)
        if not isinstance(storage, RDBStorage):
            raise TypeError(f"{type(storage).__name__} is no database")
        _rename(storage, {name: former, draft: name})
    finally:
        opened.close()
    return former


def _rename(database: RDBStorage, names: Mapping[str, str]) -> None:
    """Give studies other names, in their order and in one transaction."""
    from optuna.storages._rdb.models import StudyModel  # it imports SQLAlchemy

    with database.scoped_session() as session:
        for before, after in names.items():
            StudyModel.find_or_raise_by_name(before, session).study_name = after
            session.flush()
        session.commit()


def _free_name(name: str, names: Iterable[str]) -> str:
    taken = set(names)
    count = 1
    while narrower_name(name, count) in taken:
        count += 1
    return narrower_name(name, count)


def _noting(successor: Snapshot, former: str) -> Snapshot:
    attrs = {**successor.user_attrs, FORMER_ATTR: former}
    return Snapshot(successor.directions, attrs, successor.system_attrs, successor.trials)
