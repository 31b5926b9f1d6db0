"""The fence of a study in a database: of several orchestrators, the last that opened it writes.

A right in Redis that ran out while its holder was suspended means nothing to a database, which
takes writes of both. So each opening leaves a mark of its own with the study, and each transaction
that wrote something reads the mark before it is committed, under a lock that another opening has
to wait for.

Invariant: nothing is committed by a storage whose mark is not the study's any more.
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any, Final

from orchestrator.storage.attributes import WRITER_ATTR
from workers.protocol.errors import FleetError, StudyTakenOverError

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from sqlalchemy.orm import Session

_WRITES: Final = ("INSERT", "UPDATE", "DELETE")

#: What a connection notes of its transaction.
_WROTE: Final = "trialfleet_wrote"


def raise_fence(database: RDBStorage, study_id: int, name: str) -> None:
    """Become the writer of a study, and let this storage write for as long as it is.

    Args:
        database: Open for writing; for this one study.
        study_id: The study, in the database's terms.
        name: The same, in people's.
    """
    from sqlalchemy import event

    mark = uuid.uuid4().hex
    database.set_study_user_attr(study_id, WRITER_ATTR, mark)

    def note_write(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip()[:6].upper() in _WRITES:
            connection.info[_WROTE] = True

    def check(session: Session) -> None:
        session.flush()
        if session.connection().info.pop(_WROTE, False):
            _hold_against(session, study_id, name, mark)

    event.listen(database.engine, "before_cursor_execute", note_write)
    event.listen(database.scoped_session.session_factory, "before_commit", check)


def _hold_against(session: Session, study_id: int, name: str, mark: str) -> None:
    """Refuse to go on if the study's mark is another one.

    Raises:
        StudyTakenOverError: It is another orchestrator's.
        FleetError: The study is not there any more.
    """
    from optuna.storages._rdb.models import StudyUserAttributeModel

    marks = session.query(StudyUserAttributeModel.value_json).filter_by(
        study_id=study_id, key=WRITER_ATTR
    )
    found = marks.with_for_update(read=True).one_or_none()
    if found is None:
        raise FleetError(f"study {name!r} was removed from its database")
    if json.loads(found[0]) != mark:
        raise StudyTakenOverError(
            f"study {name!r} is driven by another orchestrator, which took it over while this one"
            " stood still; nothing was written"
        )
