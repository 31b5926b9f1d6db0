"""Divides the studies among the orchestrators that keep results in one database.

Each tells in its record how many it drives, and what these have of each queue's slots, by which the
others leave them their part (`shared_queue.py`). A study that nobody drives falls to one of them by
its name, as long as that one has not more than its part; who has two more than another one hands
some on. Nothing is agreed upon: each goes by what it sees, and who holds the right to a study
drives it.

Invariant: a study waits for an orchestrator that does not take it for a few looks at the fleet, and
then anybody's it is.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Final

import redis
from sqlalchemy.engine import URL, make_url

from orchestrator.driving.shared_queue import Partners
from workers.coordination.identity import hostname
from workers.processes.registry import ProcessEntry, ProcessRecord, QueueUse, SharedStudies
from workers.protocol.states import ProcessKind
from workers.settings import Settings

#: How long a study is left to another one, for each reason to do so; it looks every second.
_GRACE_SECONDS: Final = 2.5

#: So many of these, for who was handed a study: it has to be closed here first.
_GRACES_TO_TAKE: Final = 4

#: So many, until one that was handed on is anybody's.
_GRACES_TO_FORGET: Final = 16

#: Each is closed here and opened there: so many at a time.
_MOST_HANDED_ON: Final = 8

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
        #: what each of the others drives, by its identity
        self._others: dict[str, SharedStudies] = {}
        self._num_driven = 0
        self._part = 0
        self._told: SharedStudies | None = None
        #: since when another one has fewer, and when some were handed on
        self._more_since: float | None = None
        self._gave_at = -math.inf
        #: since when a study was seen to be nobody's
        self._free_since: dict[str, float] = {}
        #: when a study was handed on: not seen to be somebody's since; and at all
        self._given: dict[str, float] = {}
        self._gave: dict[str, float] = {}
        self._quiet_until = 0.0
        self._pause = _FIRST_PAUSE_SECONDS

    def look(
        self,
        processes: Iterable[ProcessEntry],
        driven: Mapping[str, str],
        known: Collection[str],
        uses: Mapping[str, QueueUse],
        *,
        is_well: bool,
    ) -> None:
        """See who there is to share with.

        Args:
            processes: The fleet's.
            driven: The studies that are driven here, each with its queue.
            known: Those that are not over.
            uses: What these have of each queue.
            is_well: Whether none stalls here: who cannot open one is to get no others.

        Raises:
            redis.RedisError: Redis is away, or refuses.
        """
        if not self._storage:
            return
        now = time.monotonic()
        self._num_driven = len(driven)
        told = SharedStudies(
            storage=self._storage, queues=dict(Counter(driven.values())), uses=dict(uses)
        )
        if not is_well:
            self.withdraw()
        elif told != self._told:
            self._record.update(shares=told.model_dump(mode="json"))
            self._told = told
        self._others = {
            str(entry.identity): entry.shares
            for entry in processes
            if entry.shares is not None and self._is_partner(entry)
        }
        self._part = -(-len(known) // (1 + len(self._others)))
        self._free_since = {name: at for name, at in self._free_since.items() if name in known}
        self._gave = {name: at for name, at in self._gave.items() if name in known}
        forgotten = now - _GRACES_TO_FORGET * self._grace
        self._given = {
            name: at for name, at in self._given.items() if name in known and at > forgotten
        }

    def withdraw(self) -> None:
        """Be handed nothing for now."""
        if self._told is not None:
            self._told = None
            with suppress(redis.RedisError):  # the record runs out then
                self._record.update(shares=None)

    @property
    def partners(self) -> Partners:
        """Those that share with this one, and what they have of the queues."""
        return Partners(self._own, {who: each.uses for who, each in self._others.items()})

    def leaves(self, study: str) -> bool:
        """Whether a study that may be nobody's is left to another one for now."""
        if not self._others:
            return False
        free_for = time.monotonic() - self._free_since.setdefault(study, time.monotonic())
        if study in self._given:
            graces = _GRACES_TO_TAKE
        else:
            graces = (not self._is_here(study)) + (self._num_driven >= self._part)
        return free_for < graces * self._grace

    def is_taken(self, study: str, *, is_here: bool) -> None:
        """A study is somebody's.

        Args:
            study: The study.
            is_here: Whether it is driven here.
        """
        self._free_since.pop(study, None)
        self._given.pop(study, None)
        if not is_here:
            return
        self._num_driven += 1
        if self._gave.pop(study, -1e9) > time.monotonic() - _LONGEST_PAUSE_SECONDS:
            # whoever got it did not keep it
            self._quiet_until = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)

    def to_give_up(self, stalled: Collection[str]) -> list[str]:
        """Which studies that do not get on here another one is to try: none, if there is none."""
        if not self._others:
            return []
        given = dict.fromkeys(set(stalled) - self._given.keys(), time.monotonic())
        self._given |= given
        self._gave |= given
        return list(given)

    def to_hand_on(self, driven: Collection[str], calm: Collection[str]) -> list[str]:
        """Which studies to hand on now.

        Args:
            driven: Those that are driven here.
            calm: Of them, those that can be left at this moment.
        """
        now = time.monotonic()
        if not self._others or self._given or now < self._quiet_until:
            self._more_since = None
            return []
        least = min(sum(each.queues.values()) for each in self._others.values())
        count = min(_MOST_HANDED_ON, (len(driven) - least) // 2)
        if count < 1:
            self._more_since = None
            return []
        # what they told is a look old, and not of what they are just opening
        self._more_since = now if self._more_since is None else self._more_since
        is_seen = now - self._more_since >= self._grace
        is_opened = now - self._gave_at >= _GRACES_TO_TAKE * self._grace
        if not (is_seen and is_opened):
            return []
        # first those that would fall to another one anyway
        given = sorted(calm, key=self._is_here)[:count]
        self._given |= dict.fromkeys(given, now)
        self._gave |= self._given
        self._more_since, self._gave_at = None, now
        return given

    @property
    def _own(self) -> str:
        return str(self._record.identity)

    def _is_here(self, study: str) -> bool:
        """Whether it falls to this one by its name, of all that there are."""
        # rendezvous hashing: of those who stay, none gets another one's when one goes
        everybody = [self._own, *self._others]
        return self._own == max(
            everybody, key=lambda who: sha256(f"{study}\0{who}".encode()).digest()
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
