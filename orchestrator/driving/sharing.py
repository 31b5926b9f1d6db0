"""Divides the studies among the orchestrators that keep results in one database, queue by queue.

The studies of one queue stay together: who shares out its slots must see all that want them. Each
orchestrator tells in its record which queues it drives. A queue that nobody drives falls to one of
them by its name, as long as that one has not more than its part; who has two queues more than
another one hands one on. Nothing is agreed upon: each goes by what it sees, and who holds the right
to a study drives it.

Invariant: a study waits for an orchestrator that does not take it for a few looks at the fleet, and
then anybody's it is.
"""

from __future__ import annotations

import ipaddress
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

import redis
from sqlalchemy.engine import URL, make_url

from workers.coordination.identity import hostname
from workers.processes.registry import ProcessEntry, ProcessRecord, SharedStudies
from workers.protocol.states import ProcessKind
from workers.settings import Settings

#: How long a study is left to another one, for each reason to do so; it looks every second.
_GRACE_SECONDS: Final = 2.5

#: So many of these, for who was handed a study: it has to be closed here first.
_GRACES_TO_TAKE: Final = 4

#: So many, before it is said that two drive one queue, and none of them is just getting it.
_GRACES_TOGETHER: Final = 8

#: How long nothing is handed on after what came back; doubled each time.
_FIRST_PAUSE_SECONDS: Final = 60.0
_LONGEST_PAUSE_SECONDS: Final = 3600.0


class Sharing:
    """What one orchestrator of all studies leaves to others.

    Args:
        record: Its own, in which it tells what it drives.
        settings: This process's.
        only: The one study that it drives; it shares none.
    """

    def __init__(self, record: ProcessRecord, settings: Settings, only: str | None) -> None:
        self._record = record
        url = "" if only is not None else settings.storage or ""
        self._storage = "" if url.startswith("journal") or not url else _mark_of(url)
        self._times = settings.times
        self._grace = _GRACE_SECONDS * min(1.0, settings.time_scale)
        #: how many studies each of the others drives, by its identity and their queue
        self._others: dict[str, Mapping[str, int]] = {}
        #: likewise, of this one
        self._driven: Counter[str] = Counter()
        self._part = 0
        self._told: Mapping[str, int] | None = None
        #: since when another one has fewer; and since when it drives the same queue
        self._more_since: float | None = None
        self._both_since: dict[str, float] = {}
        #: since when a study was seen to be nobody's
        self._free_since: dict[str, float] = {}
        #: when a study was handed on that was not seen to be somebody's since; and a queue
        self._given: dict[str, float] = {}
        self._gave: dict[str, float] = {}
        self._quiet_until = 0.0
        self._pause = _FIRST_PAUSE_SECONDS

    def look(
        self,
        processes: Iterable[ProcessEntry],
        driven: Mapping[str, str],
        known: Mapping[str, str],
        *,
        is_well: bool,
    ) -> None:
        """See who there is to share with.

        Args:
            processes: The fleet's.
            driven: The studies that are driven here, each with its queue.
            known: Likewise, those that are not over.
            is_well: Whether none stalls here: who cannot open one is to get no others.

        Raises:
            redis.RedisError: Redis is away, or refuses.
        """
        if not self._storage:
            return
        now = time.monotonic()
        self._driven = Counter(driven.values())
        if not is_well:
            self.withdraw()
        elif self._driven != self._told:
            told = SharedStudies(storage=self._storage, queues=dict(self._driven))
            self._record.update(shares=told.model_dump(mode="json"))
            self._told = dict(self._driven)
        self._others = {
            str(entry.identity): entry.shares.queues
            for entry in processes
            if entry.shares is not None and self._is_partner(entry)
        }
        self._part = -(-len(set(known.values())) // (1 + len(self._others)))
        self._free_since = {name: at for name, at in self._free_since.items() if name in known}
        forgotten = now - 2 * _GRACES_TOGETHER * self._grace
        self._given = {
            name: at for name, at in self._given.items() if name in known and at > forgotten
        }

    def withdraw(self) -> None:
        """Be handed nothing for now."""
        if self._told is not None:
            self._told = None
            with suppress(redis.RedisError):  # the record runs out then
                self._record.update(shares=None)

    def leaves(self, study: str, queue: str) -> bool:
        """Whether a study that may be nobody's is left to another one for now."""
        if not self._others:
            return False
        free_for = time.monotonic() - self._free_since.setdefault(study, time.monotonic())
        if study in self._given:
            graces = _GRACES_TO_TAKE
        elif queue in self._driven:
            graces = 0
        elif any(queue in driven for driven in self._others.values()):
            graces = 2
        else:
            is_here = self._falls_to(queue, self._others) == self._own
            graces = (not is_here) + (len(self._driven) >= self._part)
        return free_for < graces * self._grace

    def is_taken(self, study: str, queue: str | None = None) -> None:
        """A study is somebody's.

        Args:
            study: The study.
            queue: Its own, if it is driven here.
        """
        self._free_since.pop(study, None)
        self._given.pop(study, None)
        if queue is None:
            return
        self._driven[queue] += 1
        if self._gave.pop(queue, -1e9) > time.monotonic() - _LONGEST_PAUSE_SECONDS:
            # whoever got it did not keep it
            self._quiet_until = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)

    def to_hand_on(self, driven: Mapping[str, str], calm: Collection[str]) -> list[str]:
        """Which studies to hand on now: all of one queue, or none.

        Args:
            driven: Those that are driven here, each with its queue.
            calm: Of them, those that can be left at this moment.
        """
        now = time.monotonic()
        if not self._others or self._given or now < self._quiet_until:
            self._more_since = None
            self._both_since.clear()
            return []
        held_up = {queue for study, queue in driven.items() if study not in calm}
        for queue in [*self._driven_elsewhere(now), *self._surplus(now)]:
            if queue not in held_up:
                given = [study for study, its in driven.items() if its == queue]
                self._given |= dict.fromkeys(given, now)
                self._gave[queue] = now
                self._more_since = None
                return given
        return []

    def _surplus(self, now: float) -> list[str]:
        """Of which queues one is to be handed on, since another one has fewer."""
        if len(self._driven) - min(len(driven) for driven in self._others.values()) < 2:
            self._more_since = None
            return []
        # what they told is a look old
        self._more_since = now if self._more_since is None else self._more_since
        if now - self._more_since < self._grace:
            return []
        # first those that would fall to another one anyway
        return sorted(
            self._driven, key=lambda queue: self._falls_to(queue, self._others) == self._own
        )

    def _driven_elsewhere(self, now: float) -> list[str]:
        """The queues that another one has been driving, too, and is to have."""
        found = {}
        for queue in self._driven:
            rivals = [who for who, driven in self._others.items() if queue in driven]
            if rivals and self._falls_to(queue, rivals) != self._own:
                found[queue] = self._both_since.get(queue, now)
        self._both_since = found
        return [queue for queue, at in found.items() if now - at >= _GRACES_TOGETHER * self._grace]

    @property
    def _own(self) -> str:
        return str(self._record.identity)

    def _falls_to(self, queue: str, others: Iterable[str]) -> str:
        """To whom a queue falls by its name, of this orchestrator and others."""
        # rendezvous hashing: of those who stay, none gets another one's when one goes
        return max(
            [self._own, *others], key=lambda who: sha256(f"{queue}\0{who}".encode()).digest()
        )

    def _is_partner(self, entry: ProcessEntry) -> bool:
        """Whether a process is another orchestrator of this database, and alive."""
        return (
            entry.kind is ProcessKind.ORCHESTRATOR
            and entry.shares is not None
            and entry.shares.storage == self._storage
            and entry.identity != self._record.identity
            # one that missed a beat or two may be dead, and what it drove is nobody's soon
            and entry.lease_left_seconds > self._times.lease - 2 * self._times.beat
            and not entry.identity.is_dead()
        )


def _mark_of(url: str) -> str:
    """Tells one database from another, without a password; two names of one are two."""
    parsed = make_url(url)
    query = sorted((key, value) for key, value in parsed.query.items() if "pass" not in key.lower())
    path = parsed.database
    if parsed.get_backend_name() == "sqlite" and path:
        path = str(Path(path).resolve())
    is_here = hostname() if _is_of_this_host(parsed) else ""
    parts = parsed.get_backend_name(), parsed.username, parsed.host, parsed.port, path, query
    return sha256(repr((parts, is_here)).encode()).hexdigest()[:32]


def _is_of_this_host(url: URL) -> bool:
    """Whether a URL means another database on each host, as far as it tells."""
    host = url.host or ""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return not host or host.startswith("localhost")
