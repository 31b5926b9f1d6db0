"""Divides the studies among the orchestrators that keep results in one database.

Each tells in its record how many it drives. A study that nobody drives falls to one of them by its
name, as long as that one has not more than its part; who has two more than another one hands some
on. Nothing is agreed upon: each goes by what it sees, and who holds the right to a study drives it.

Invariant: a study waits for an orchestrator that does not take it for a few looks at the fleet, and
then anybody's it is.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from hashlib import sha256
from typing import Final

from orchestrator.storage.place import place_of
from workers.processes.registry import ProcessEntry, ProcessRecord, SharedStudies
from workers.protocol.states import ProcessKind
from workers.settings import Settings

#: How long a study is left to another one, for each reason to do so; it looks every second.
_GRACE_SECONDS: Final = 2.5

#: Handed on at most at one look; what it takes to open them comes upon the other one.
_AT_A_TIME: Final = 16


class Sharing:
    """What one orchestrator of all studies leaves to others.

    Args:
        record: Its own, in which it tells how many studies it drives.
        settings: This process's.
        only: The one study that it drives; it shares none.
    """

    def __init__(self, record: ProcessRecord, settings: Settings, only: str | None) -> None:
        self._record = record
        is_shared = only is None and settings.storage and not settings.storage.startswith("journal")
        self._place = place_of(settings.storage) if is_shared and settings.storage else None
        self._times = settings.times
        self._grace = _GRACE_SECONDS * min(1.0, settings.time_scale)
        #: how many studies each of the others drives, by its identity
        self._others: dict[str, int] = {}
        self._part = 0
        self._told: int | None = None
        #: since when another one has fewer
        self._more_since: float | None = None
        #: since when a study was seen to be nobody's
        self._free_since: dict[str, float] = {}
        #: what was handed on, and not seen to be somebody's since
        self._given: set[str] = set()

    def look(
        self, processes: Iterable[ProcessEntry], driven: Collection[str], known: Collection[str]
    ) -> None:
        """See who there is to share with.

        Args:
            processes: The fleet's.
            driven: The studies that are driven here.
            known: Those that are not over.
        """
        if self._place is None:
            return
        if len(driven) != self._told:
            self._told = len(driven)
            self._record.update(shares={"storage": self._place, "studies": self._told})
        # one that missed a beat or two may be dead, and what it drove is nobody's soon
        least_left = self._times.lease - 2 * self._times.beat
        self._others = {
            str(entry.identity): shares.studies
            for entry in processes
            if entry.kind is ProcessKind.ORCHESTRATOR
            and (shares := _shares_of(entry)) is not None
            and shares.storage == self._place
            and entry.lease_left_seconds > least_left
            and entry.identity != self._record.identity
        }
        self._part = -(-len(known) // (1 + len(self._others)))
        self._free_since = {name: at for name, at in self._free_since.items() if name in known}
        self._given.intersection_update(known)

    def leaves(self, study: str, num_driven: int) -> bool:
        """Whether a study that may be nobody's is left to another one for now."""
        if not self._others:
            return False
        free_for = time.monotonic() - self._free_since.setdefault(study, time.monotonic())
        reasons = (
            not self._falls_here(study),
            num_driven >= self._part,
            study in self._given,
        )
        return free_for < sum(reasons) * self._grace

    def is_taken(self, study: str) -> None:
        """A study is somebody's, here or elsewhere."""
        self._free_since.pop(study, None)
        self._given.discard(study)

    def to_hand_on(self, studies: Iterable[str], num_driven: int) -> list[str]:
        """Which studies to hand on now, since another one has fewer.

        Args:
            studies: Of those that are driven here, the ones that can be left at this moment.
            num_driven: How many are driven here.
        """
        now, surplus = time.monotonic(), 0
        if self._others and not self._given:
            surplus = (num_driven - min(self._others.values())) // 2
        if surplus < 1:
            self._more_since = None
            return []
        # what they told is a look old
        self._more_since = now if self._more_since is None else self._more_since
        if now - self._more_since < self._grace:
            return []
        # first those that would fall to another one anyway
        given = sorted(studies, key=self._falls_here)[: min(surplus, _AT_A_TIME)]
        self._given.update(given)
        return given

    def _falls_here(self, study: str) -> bool:
        """Whether a study falls to this orchestrator by its name (rendezvous hashing)."""
        own = str(self._record.identity)
        return max([own, *self._others], key=lambda who: _weight(study, who)) == own


def _shares_of(entry: ProcessEntry) -> SharedStudies | None:
    return None if entry.is_draining or entry.stalled else entry.shares


def _weight(study: str, identity: str) -> bytes:
    return sha256(f"{study}\0{identity}".encode()).digest()
