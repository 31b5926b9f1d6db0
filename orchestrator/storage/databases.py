"""Opens databases of results: for writing, with the tables made; or to look, and leave no trace.

Imports SQLAlchemy; imported where a storage is a database.

Invariant: who looks at a database leaves neither tables nor connections there.
"""

from __future__ import annotations

import time
from typing import Final

from optuna.storages import RDBStorage
from sqlalchemy import create_engine, inspect
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from orchestrator.storage.read_only import ReadOnlyDatabase

#: Of Optuna's tables the one that is made last.
_LAST_TABLE: Final = "alembic_version"

#: Another process may make the tables at the same moment: how often to look, and after what pause.
_TRIES: Final = 5
_PAUSE_SECONDS: Final = 0.3


def open_to_write(url: str) -> RDBStorage:
    """A database to write to."""
    for _ in range(_TRIES):
        if _has_tables(url):
            break
        _make_tables(url)
    return RDBStorage(url)


def open_to_read(url: str) -> ReadOnlyDatabase | None:
    """A database to read from, or None if it has no tables of Optuna's (yet)."""
    if not _has_tables(url):
        return None
    return ReadOnlyDatabase(url, engine_kwargs={"poolclass": NullPool}, skip_table_creation=True)


def _has_tables(url: str) -> bool:
    return inspect(create_engine(url, poolclass=NullPool)).has_table(_LAST_TABLE)


def _make_tables(url: str) -> None:
    try:
        RDBStorage(url, engine_kwargs={"poolclass": NullPool})
    except (SQLAlchemyError, RuntimeError) as error:
        if not (isinstance(error, IntegrityError) or "already exists" in str(error)):
            raise
        time.sleep(_PAUSE_SECONDS)
