"""Opens databases of results: for writing, with the tables made; or to look, and leave no trace.

Imports SQLAlchemy; imported where a storage is a database.

Invariant: who looks at a database leaves neither tables nor connections there; all studies that
this process writes there share one pool of connections.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Final

from optuna.storages import RDBStorage
from sqlalchemy import Engine, create_engine, inspect, make_url, text
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from orchestrator.storage.read_only import ReadOnlyDatabase

#: Of Optuna's tables the one that is made last.
_LAST_TABLE: Final = "alembic_version"

#: Another process may make the tables at the same moment: how often to look, and after what pause.
_TRIES: Final = 5
_PAUSE_SECONDS: Final = 0.3

#: By URL: the engine of all studies that are written there, and how many they are.
_engines: dict[str, tuple[Engine, int]] = {}
_engines_lock: Final = threading.Lock()


def open_to_write(url: str) -> RDBStorage:
    """A database to write to."""
    for _ in range(_TRIES):
        if _has_tables(url):
            break
        _make_tables(url)
    database = RDBStorage(url, engine_kwargs={"poolclass": NullPool}, skip_table_creation=True)
    # servers count connections: one pool for all studies, and to each an engine with its own fence
    database.scoped_session.remove()
    database.engine = _take_engine(url, database.url).execution_options()
    database.scoped_session = scoped_session(sessionmaker(bind=database.engine))
    return database


def close_written(database: RDBStorage, url: str) -> None:
    """Give back what `open_to_write` took; the last one closes the connections."""
    database.remove_session()
    with _engines_lock:
        engine, count = _engines.pop(url)
        if count > 1:
            _engines[url] = (engine, count - 1)
            return
    engine.dispose()


def _take_engine(url: str, filled_in: str) -> Engine:
    with _engines_lock:
        engine, count = _engines.get(url) or (_make_engine(filled_in), 0)
        _engines[url] = (engine, count + 1)
        return engine


def open_to_read(url: str) -> ReadOnlyDatabase | None:
    """A database to read from, or None if it has no tables of Optuna's (yet)."""
    if not _has_tables(url):
        return None
    return ReadOnlyDatabase(url, engine_kwargs={"poolclass": NullPool}, skip_table_creation=True)


def _make_engine(url: str) -> Engine:
    # as Optuna has it: servers of this kind drop connections that are idle
    return create_engine(url, pool_pre_ping=url.startswith("mysql"))


def _has_tables(url: str) -> bool:
    """Whether all tables are there, and it is written down of which version they are."""
    if _is_file_to_come(url):
        return False
    with create_engine(url, poolclass=NullPool).connect() as connection:
        if not inspect(connection).has_table(_LAST_TABLE):
            return False
        found = connection.execute(text(f"SELECT version_num FROM {_LAST_TABLE}"))  # noqa: S608
        return found.first() is not None


def _is_file_to_come(url: str) -> bool:
    """Whether it is a file that is not there yet, and that a connection would make."""
    address = make_url(url)
    if address.get_backend_name() != "sqlite" or not address.database:
        return False
    file = Path(address.database)
    # where it cannot be made, a connection says so
    return not file.exists() and file.absolute().parent.is_dir()


def _make_tables(url: str) -> None:
    try:
        RDBStorage(url, engine_kwargs={"poolclass": NullPool})
    except (SQLAlchemyError, RuntimeError) as error:
        if not (isinstance(error, IntegrityError) or "already exists" in str(error)):
            raise
        time.sleep(_PAUSE_SECONDS)
