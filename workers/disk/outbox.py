"""The outbox: results on disk before they are committed, so that none dies with its process.

Layout: `<home>/outbox/<study>-<number>-<token>.json`, flushed to disk where Redis does not answer
at once, removed once it has. Whoever finds one of a dead process may commit it: the token decides
whether it counts. One of an earlier epoch is handed in anew where Redis lost its data: its trial is
claimed for it.

Invariant: an entry that cannot be read or committed is left, and holds up no other; what an entry
names outside its own trial's directory is never touched.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import redis
from pydantic import BaseModel, ConfigDict

from workers.coordination.connection import GENERAL_ERRORS
from workers.coordination.grants import Refusal
from workers.coordination.identity import ProcessIdentity
from workers.coordination.leases import TrialLeases
from workers.coordination.setbacks import Setbacks
from workers.disk import durable, results
from workers.disk.uploads import Errand, Uploads
from workers.logs import get_logger
from workers.protocol.messages import Result
from workers.protocol.states import TrialState

log = get_logger(__name__)

#: How long an entry is left that could not be seen to; doubled each time.
_PAUSE_SECONDS: Final = 10.0


class OutboxEntry(BaseModel):
    """A result that is to be committed."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    study: str
    number: int
    epoch: str
    generation: str | None = None
    """Of the study; None in what a release before wrote."""
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

    def __init__(self, home: Path, uploads: Uploads | None = None) -> None:
        self._home = home
        self._uploads = uploads
        self._folder = home / "outbox"
        self._setbacks = Setbacks(_PAUSE_SECONDS)
        self._lock = home / "outbox.lock"

    def write(self, entry: OutboxEntry) -> None:
        """Have a result outlive this process.

        Raises:
            OSError: The disk takes no more; nothing of it is left.
        """
        path, content = self._folder / entry.name, entry.model_dump_json()
        try:
            durable.place_whole(path, content)
        except FileNotFoundError:
            self._folder.mkdir(parents=True, exist_ok=True)
            durable.place_whole(path, content)

    def bring_to_disk(self, entry: OutboxEntry) -> None:
        """Have a written result outlive this host, too: it may take long to be committed.

        One that was committed at once needs it not: where the host goes first, so does its trial's
        lease, and the trial runs again.

        Raises:
            OSError: The disk does not take it.
        """
        with suppress(FileNotFoundError):  # somebody has committed it
            durable.sync(self._folder / entry.name)
            durable.sync(self._folder)

    def entries(self) -> list[OutboxEntry]:
        """All results that can be read; of the others it is said, and they are left for a while."""
        found = []
        paths = sorted(self._folder.glob("*.json"))
        self._setbacks.forget_others({path.name for path in paths})
        for path in paths:
            if not self._setbacks.is_due(path.name):
                continue
            try:
                found.append(self._read(path))
            except FileNotFoundError:
                self._setbacks.done(path.name)  # its owner has committed it
            except (OSError, ValueError, RecursionError) as error:
                self._setbacks.failed(path.name, "outbox_unreadable", error)
        return found

    def setbacks(self) -> list[str]:
        """What is left for now, and why."""
        return self._setbacks.described()

    def _read(self, path: Path) -> OutboxEntry:
        """An entry that names what is its own.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is no entry, or another's than its name says.
        """
        entry = OutboxEntry.model_validate_json(path.read_bytes())
        if entry.name != path.name or entry.study in {".", ".."}:
            raise ValueError(f"it is the entry {entry.name[:200]!r}")
        for lie_at in (results.draft_directory, results.earlier_draft_directory):
            own = lie_at(Path(), entry.study, entry.number, entry.token)
            if entry.files.parts[-len(own.parts) :] == own.parts:
                # another host may know the home by another path
                return entry.model_copy(update={"files": self._home / own})
        raise ValueError(f"its files are said to lie at {str(entry.files)[:200]!r}")

    def commit(self, entry: OutboxEntry, leases: TrialLeases) -> str:
        """Commit a result and publish its files: OK, DUP or LOST; the entry is removed.

        An owner that Redis kept waiting and a host agent may do it at once: one reads OK and the
        other DUP, and the files are published once.
        """
        status = leases.commit(entry.number, entry.token, entry.state, entry.result)
        self.settle(entry, status, leases)
        return status

    def settle(self, entry: OutboxEntry, status: str, leases: TrialLeases) -> None:
        """Publish the files of a result that was accepted, and remove the entry.

        One that is lost because Redis lost its data is left, on disk: it is handed in anew, which
        may take long.
        """
        if status == "LOST" and not leases.is_current():
            try:
                self.bring_to_disk(entry)
            except OSError as problem:
                log.warning("outbox_not_written", error=str(problem), hint="make room on the disk")
            return
        if status != "LOST":
            self._publish(entry, entry.token)
        (self._folder / entry.name).unlink(missing_ok=True)

    def _publish(self, entry: OutboxEntry, token: int) -> None:
        """One at a time: a second one would take the result for that of an earlier attempt."""
        if not results.has_drafts(self._home, entry.study) and not entry.files.exists():
            return
        with ExitStack() as stack:
            # no room for it: nor was there for an entry that anybody else could commit
            with suppress(OSError):
                lock = stack.enter_context(self._lock.open("a"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            results.publish(self._home, entry.study, entry.number, entry.files)
        if self._uploads is not None:
            generation = entry.generation or ""
            self._uploads.add(
                Errand("result", entry.study, entry.number, token, generation=generation)
            )

    def commit_abandoned(
        self, leases_of: Callable[[str, str | None], TrialLeases], lease_seconds: float
    ) -> None:
        """Commit what dead processes of this host left, and what lies there for over a lease.

        Args:
            leases_of: The trials of a study under an epoch, by default that of now.
            lease_seconds: After which no owner commits by itself any more, on whatever host.
        """
        for entry in self.entries():
            if not (entry.owner.is_dead() or self._age_seconds(entry) > lease_seconds):
                continue
            try:
                status = self._commit_for_another(entry, leases_of, lease_seconds)
            except GENERAL_ERRORS:
                raise
            except (redis.RedisError, OSError, ValueError) as error:
                self._setbacks.failed(entry.name, "outbox_not_committed", error)
                continue
            if status is not None:
                self._setbacks.done(entry.name)
                log.info("outbox_committed", study=entry.study, trial=entry.number, status=status)

        self._drop_remnants(lease_seconds)

    def _drop_remnants(self, lease_seconds: float) -> None:
        """Remove what holds no result and will not: its trial's lease has run out by now."""
        for path in self._folder.glob("*.json"):
            with suppress(OSError):  # which `entries` tells
                if _age_seconds(path) > lease_seconds and _holds_nothing(path):
                    path.unlink(missing_ok=True)
                    log.warning(
                        "outbox_entry_empty",
                        name=path.name[:200],
                        hint="its host went before it was on disk; its trial runs again",
                    )
        for draft in self._folder.glob("*.draft"):  # of a process that died while writing
            if _age_seconds(draft) > lease_seconds:
                draft.unlink(missing_ok=True)

    def _commit_for_another(
        self,
        entry: OutboxEntry,
        leases_of: Callable[[str, str | None], TrialLeases],
        lease_seconds: float,
    ) -> str | None:
        """Commit a result that another process left; None if it has to wait."""
        leases = leases_of(entry.study, entry.epoch)
        if leases.is_current():
            return self.commit(entry, leases)
        leases = leases_of(entry.study, None)
        record = leases.record(entry.number)
        if record is not None and entry.generation not in {None, record.generation}:
            (self._folder / entry.name).unlink(missing_ok=True)
            return "LOST"  # that study was removed, and another one has its name
        # by its name: whoever asks again, for the same entry, gets the same grant
        grant = leases.claim(
            entry.number, str(entry.owner), lease_seconds, nonce=entry.name, insists=True
        )
        if isinstance(grant, Refusal):
            if grant.reason == "DONE":
                (self._folder / entry.name).unlink(missing_ok=True)
                return "LOST"
            return None  # another attempt runs, or the study is not back yet
        log.info("outbox_handed_in_anew", study=entry.study, trial=entry.number)
        status = leases.commit(entry.number, grant.token, entry.state, entry.result)
        if status != "LOST":
            self._publish(entry, grant.token)
            (self._folder / entry.name).unlink(missing_ok=True)
        return status

    def _age_seconds(self, entry: OutboxEntry) -> float:
        return _age_seconds(self._folder / entry.name)


def _holds_nothing(path: Path) -> bool:
    """Whether a file has a name and no content, as a power cut leaves one; or zeros in its place.

    Raises:
        OSError: It cannot be read.
    """
    return not path.read_bytes().strip(b"\0")


def _age_seconds(path: Path) -> float:
    """How long ago a file was written; 0 for one that is not there (any more)."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
