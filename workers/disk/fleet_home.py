"""The bond between a home and the one fleet that it belongs to: an id in Redis and in the home.

The id outlives a Redis that loses its data: an empty one takes the home's on, through an
orchestrator that holds the home's lock, so that checkpoints and results find their fleet again.

Invariant: what lies in a home is touched by processes of its own fleet alone; two servers never
carry the id of one home while an orchestrator holds its lock.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import redis

from workers.coordination import keys
from workers.disk import durable
from workers.logs import get_logger
from workers.protocol.errors import InvalidInputError

log = get_logger(__name__)

#: How long an orchestrator waits for the one that holds the home's lock to bring the id to Redis.
_PATIENCE_SECONDS: Final = 5.0

_ID: Final = re.compile(r"[0-9a-f]{32}")


def make_home(home: Path) -> None:
    """Make a home that is not there yet, for its owner alone; one that is there keeps its mode.

    What lies in it (data, models, logs, the journal) is nobody else's; a home that several users
    are to share is made by hand, with the group and the mode that they need.

    Raises:
        InvalidInputError: It cannot be made.
    """
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        home.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise InvalidInputError(
            f"FLEET_HOME={home} cannot be made: {error.strerror}; set FLEET_HOME to a directory"
            " that this user may write to"
        ) from error


class FleetHome:
    """A home as seen by a process of a fleet.

    Args:
        client: The fleet's Redis.
        home: `FLEET_HOME`.
    """

    def __init__(self, client: redis.Redis, home: Path) -> None:
        self._client = client
        self._home = home
        self._file = home / "fleet.id"
        self._lock: int | None = None
        self._was_refused = False

    def join(self) -> str | None:
        """Hold the home's fleet against that of Redis; a new home becomes the fleet's.

        Returns:
            The fleet's id, or None while Redis has none: an orchestrator will see to it.

        Raises:
            InvalidInputError: The home belongs to another fleet.
        """
        fleet = self._client.get(keys.FLEET)
        if fleet is None:
            return None
        own = self._read() or self._write(str(fleet))
        self._compare(own, str(fleet))
        return own

    def check(self) -> str | None:
        """The same of whoever only looks: a new home stays nobody's, and None is returned.

        Raises:
            InvalidInputError: The home belongs to another fleet.
        """
        fleet, own = self._client.get(keys.FLEET), self._read()
        if fleet is not None and own is not None:
            self._compare(own, str(fleet))
        return own

    def _compare(self, own: str, fleet: str) -> None:
        if own != fleet:
            raise InvalidInputError(
                f"FLEET_HOME={self._home} belongs to fleet {own[:8]}, and this Redis to fleet"
                f" {fleet[:8]}: two fleets in one home would remove one another's checkpoints. Set"
                " FLEET_HOME to another directory, or FLEET_REDIS_URL to the Redis of"
                f" {own[:8]}; if that one is gone for good, remove {self._file}"
            )

    def is_ours(self) -> bool:
        """Whether what lies in the home may be touched now; said once if it is another fleet's."""
        try:
            fleet = self.join()
        except InvalidInputError as error:
            if not self._was_refused:
                log.warning("home_of_another_fleet", error=str(error))
            self._was_refused = True
            return False
        self._was_refused = False
        return fleet is not None

    def lead(self) -> str:
        """As an orchestrator, see to it that the home and Redis carry one id; what it is.

        Raises:
            InvalidInputError: The home belongs to another fleet, or is led by an orchestrator on
                another Redis.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while (fleet := self.try_lead()) is None:
            if time.monotonic() > deadline:
                raise InvalidInputError(
                    f"FLEET_HOME={self._home} is led by an orchestrator on another Redis: set"
                    " FLEET_HOME to another directory, or FLEET_REDIS_URL to that one's Redis"
                )
            time.sleep(0.1)
        return fleet

    def try_lead(self) -> str | None:
        """The same without waiting: None where another orchestrator has to bring the id to Redis.

        Raises:
            InvalidInputError: The home belongs to another fleet.
        """
        if self._take_lock() and self._client.get(keys.FLEET) is None:
            fleet = self._read() or uuid.uuid4().hex
            if self._client.set(keys.FLEET, fleet, nx=True):
                log.info("fleet_id_given", fleet=fleet)
        return self.join()

    def close(self) -> None:
        """Let another orchestrator lead."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> bool:
        """Hold the lock of those that lead a home; False while another one does."""
        if self._lock is None:
            make_home(self._home)
            self._lock = _locked(self._home / "orchestrator.lock", fcntl.LOCK_EX | fcntl.LOCK_NB)
        return self._lock is not None

    def _read(self) -> str | None:
        try:
            text = self._file.read_text(errors="replace").strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InvalidInputError(
                f"{self._file}, which says whose this FLEET_HOME is, cannot be read:"
                f" {error.strerror}; mend that, or set FLEET_HOME to another directory"
            ) from error
        if not _ID.fullmatch(text):
            raise InvalidInputError(
                f"{self._file} holds {text[:40]!r}, which is no fleet's id; if no other fleet uses"
                " this FLEET_HOME, remove the file"
            )
        return text

    def _write(self, fleet: str) -> str:
        """Give a new home to a fleet; the id of the one that came first."""
        make_home(self._home)
        with self._alone():
            found = self._read()
            if found is None:
                durable.write_whole(self._file, fleet)
                found = fleet
        return found

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = None
        with suppress(OSError):  # a file system without locks: the rename is whole all the same
            lock = _locked(self._home / "fleet.id.lock", fcntl.LOCK_EX)
        try:
            yield
        finally:
            if lock is not None:
                os.close(lock)


def _locked(path: Path, how: int) -> int | None:
    """An open file with a lock on it; None while another process holds the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
