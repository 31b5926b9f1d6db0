"""The outbox: results on disk before they are committed, so that none dies with its process.

Layout: `<home>/outbox/<study>-<number>-<token>.json`, flushed to disk, removed once Redis has
answered. Whoever finds one of a dead process may commit it: the token decides whether it counts.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from workers.coordination.identity import ProcessIdentity
from workers.coordination.leases import TrialLeases
from workers.disk import durable
from workers.logs import get_logger
from workers.protocol.messages import Result
from workers.protocol.states import TrialState

log = get_logger(__name__)


class OutboxEntry(BaseModel):
    """A result that is to be committed."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    study: str
    number: int
    epoch: str
    token: int
    state: TrialState
    result: Result
    owner: ProcessIdentity
    files: Path
    """The attempt's directory, published if the result is accepted."""

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.study}-{self.number}-{self.token}.json"


class Outbox:
    """The results of this host that Redis has not answered yet."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "outbox"
        self._lock = home / "outbox.lock"

    def write(self, entry: OutboxEntry) -> None:
        """Bring a result to disk.

        Raises:
            OSError: The disk takes no more; nothing of it is left.
        """
        durable.write_whole(self._folder / entry.name, entry.model_dump_json())

    def entries(self) -> list[OutboxEntry]:
        """All results, the oldest first."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                found.append(OutboxEntry.model_validate_json(path.read_bytes()))
            except (OSError, ValueError) as error:
                log.warning("outbox_unreadable", path=str(path), error=str(error))
        return found

    def commit(self, entry: OutboxEntry, leases: TrialLeases) -> str:
        """Commit a result and publish its files: OK, DUP or LOST; the entry is removed.

        An owner that Redis kept waiting and a host agent may do it at once: one reads OK and the
        other DUP, and the files are published once.
        """
        status = leases.commit(entry.number, entry.token, entry.state, entry.result)
        self.settle(entry, status)
        return status

    def settle(self, entry: OutboxEntry, status: str) -> None:
        """Publish the files of a result that was accepted, and remove the entry."""
        if status != "LOST":
            with self._publishing():
                publish_files(entry.files)
        (self._folder / entry.name).unlink(missing_ok=True)

    @contextmanager
    def _publishing(self) -> Iterator[None]:
        """One at a time: a second one would take the result for that of an earlier attempt."""
        with ExitStack() as stack:
            # no room for it: nor was there for an entry that anybody else could commit
            with suppress(OSError):
                lock = stack.enter_context(self._lock.open("a"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def commit_abandoned(
        self, leases_of: Callable[[str, str], TrialLeases], lease_seconds: float
    ) -> None:
        """Commit what dead processes of this host left, and what lies there for over a lease.

        Args:
            leases_of: The trials of a study under an epoch.
            lease_seconds: After which no owner commits by itself any more, on whatever host.
        """
        for entry in self.entries():
            died_here = entry.owner.is_dead()
            if died_here or _age_seconds(self._folder / entry.name) > lease_seconds:
                status = self.commit(entry, leases_of(entry.study, entry.epoch))
                log.info("outbox_committed", study=entry.study, trial=entry.number, status=status)

        for draft in self._folder.glob("*.draft"):  # of a process that died while writing
            if _age_seconds(draft) > lease_seconds:
                draft.unlink(missing_ok=True)


def _age_seconds(path: Path) -> float:
    """How long ago a file was written; 0 for one that is not there (any more)."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def publish_files(attempt_directory: Path) -> None:
    """Move what an accepted attempt left to where people look, and drop other attempts' drafts."""
    parent = attempt_directory.parent
    if attempt_directory.exists():
        final = parent / "result"
        shutil.rmtree(final, ignore_errors=True)
        attempt_directory.rename(final)
    for draft in parent.glob("attempt-*"):
        shutil.rmtree(draft, ignore_errors=True)
