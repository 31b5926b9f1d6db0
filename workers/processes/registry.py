"""The registry of the fleet's processes: who runs where, as whose child, on what, until when.

Invariant: a record is written before the resource that it names exists. It counts for as long as
somebody beats for it; after that it is kept for a while, for whoever cleans up.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import redis
from pydantic import BaseModel, ConfigDict

from workers.coordination import keys
from workers.coordination.clock import server_time_ms
from workers.coordination.identity import ProcessIdentity
from workers.coordination.scripts import Value, Verb, call, script
from workers.disk.shared_memory import shared_memory_prefixes
from workers.logs import get_logger
from workers.processes.membership import Membership
from workers.processes.memory import UsedMemory
from workers.protocol.events import EventKind
from workers.protocol.plain import plain_text
from workers.protocol.states import Charge, ProcessKind
from workers.times import Times

log = get_logger(__name__)

#: How long the record of a process that stopped beating is kept for the cleaner: 1 day.
KEEP_LAPSED_MS: Final = 24 * 3600 * 1000


class QueueUse(BaseModel):
    """What the studies that one orchestrator drives have of a queue's slots, and want."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    level: float
    """Slot-seconds that they used for their weight."""
    pull: float
    """The weights, with their priorities, of those that could take more than their part."""
    seconds: float
    """How long one of their trials takes; 0 where none has ended yet."""
    wanted: int
    """Trials that they would be granted now, were all slots theirs."""
    in_flight: int
    running: int
    """Of those in flight, how many a worker holds."""
    stuck: int
    """Of those in flight, how many have waited for long without a worker that takes them."""
    content: int = 0
    """How many in flight is all that the others can take, which is less than their part."""
    content_wanted: int = 0
    """Of what is wanted, how much is theirs."""


class SharedStudies(BaseModel):
    """What an orchestrator tells that shares all studies of a database with others."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    #: Tells the database from others.
    storage: str
    #: How many of them it drives, by their queue.
    queues: dict[str, int] = {}
    #: What these have of each queue and want; told where there are others to share with.
    uses: dict[str, QueueUse] = {}


class ProcessEntry(BaseModel):
    """A process record as read back from Redis."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    identity: ProcessIdentity
    kind: ProcessKind
    #: Whose it is, by uid; None in a record of a release that did not say.
    user: int | None = None
    #: Pid of the process above it on the same host; 0 where there is none.
    parent: int = 0
    lease_left_seconds: float = 0.0
    study: str | None = None
    trial: int | None = None
    token: int | None = None
    attempt: int | None = None
    gpu: str | None = None
    #: What its trial does before or between steps, and how far that is.
    activity: str | None = None
    #: The name by which marks against it are kept.
    device: str | None = None
    #: Why its slot takes no trials.
    aside: str | None = None
    #: Studies whose objective is another one here than the submitter's: the sum of its file.
    other_code: dict[str, str] = {}
    #: Studies of which it takes no trial, each with the reason.
    refuses: dict[str, str] = {}
    #: The one study that an orchestrator drives; None of one that drives all, or does not say.
    drives: str | None = None
    #: The studies that an orchestrator shares with others; None of one that shares none.
    shares: SharedStudies | None = None
    #: Pool processes of a main process.
    slots: int = 0
    queues: list[str] = []
    #: What it must agree on with the others; None of a process that tells nothing, such as a slot.
    membership: Membership | None = None
    scratch: list[Path] = []
    #: How the names of its shared-memory segments begin.
    shared_memory: list[str] = []
    started_at: float = 0.0
    #: As of its last beat.
    memory: UsedMemory = UsedMemory()
    is_draining: bool = False
    #: Why the process ended itself.
    last_word: str | None = None
    #: What the attempt counts as that ends with this process.
    charge: Charge = Charge.LOSS
    #: What this process could not do so far, each with the reason.
    stalled: list[str] = []


class ProcessRegistry:
    """Reads and writes process records; every call is one script."""

    def __init__(self, client: redis.Redis, times: Times) -> None:
        self._client = client
        self._ttl_ms = int(times.lease * 1000)
        #: records that were last read and tell nothing to this release, each with the reason
        self.unreadable: dict[str, str] = {}

    def register(self, identity: ProcessIdentity, fields: Mapping[str, Any]) -> None:
        """Write fields of a process's record and start its lease anew; values go as JSON."""
        pairs = [item for name, value in fields.items() for item in (name, json.dumps(value))]
        self._call("process_register", identity, rest=pairs)

    def beat(self, identity: ProcessIdentity, memory: UsedMemory | None = None) -> bool:
        """Renew a record's lease; False if it is gone and must be registered again.

        Args:
            identity: Whose it is.
            memory: What that process uses; of this one, by default.
        """
        used = {"memory": json.dumps(memory or UsedMemory.now())}
        return self._call("process_beat", identity, given=used)[0] == "OK"

    def gone(self, identity: ProcessIdentity, kind: EventKind = EventKind.DIED) -> None:
        """Drop the record of a process that was found dead, or that leaves by itself (LEFT)."""
        names = {
            "process": keys.process(identity),
            "processes": keys.PROCESSES,
            "events": keys.FLEET_EVENTS,
        }
        arguments = {"identity": str(identity), "kind": kind.value}
        call(self._client, "process_gone", names, arguments)

    def find(self, identity: ProcessIdentity) -> ProcessEntry | None:
        """The record of one process, also of one that stopped beating within the last day."""
        return next(self._read([str(identity)]), None)

    def entries(self, *, prunes: bool = False) -> Iterator[ProcessEntry]:
        """All processes that beat.

        Args:
            prunes: Whether those without a record are dropped from the index; by the fleet's
                members, as who looks may not write.
        """
        return self._read(
            self._client.zrangebyscore(keys.PROCESSES, server_time_ms(self._client), "+inf"),
            prunes=prunes,
        )

    def dead_here(self) -> list[ProcessEntry]:
        """This user's processes of this host that are gone, leases ended or not."""
        self._client.zremrangebyscore(
            keys.PROCESSES, 0, server_time_ms(self._client) - KEEP_LAPSED_MS
        )
        members = [
            member
            for member in self._client.zrange(keys.PROCESSES, 0, -1)
            if (identity := _identity(member)) is not None and identity.is_dead()
        ]
        found = self._read(members, prunes=True)
        return [entry for entry in found if entry.identity.is_dead(entry.user)]

    def _read(self, members: Sequence[str], *, prunes: bool = False) -> Iterator[ProcessEntry]:
        """The records of some processes.

        What cannot be read is said once, and left for a release that can, until it runs out.
        """
        now_ms = server_time_ms(self._client)
        pipeline = self._client.pipeline(transaction=False)
        for member in members:
            pipeline.hgetall(keys.process(member))
            pipeline.zscore(keys.PROCESSES, member)
        answers = pipeline.execute(raise_on_error=False)
        for member, fields, deadline_ms in zip(members, answers[::2], answers[1::2], strict=True):
            if fields == {}:
                if prunes:
                    self._client.zrem(keys.PROCESSES, member)
                self.unreadable.pop(member, None)
                continue
            try:
                entry = _parse(member, fields, ((deadline_ms or 0.0) - now_ms) / 1000)
            except (ValueError, redis.ResponseError) as error:
                reason = plain_text(error, 500)
                if member not in self.unreadable:
                    log.warning("record_unreadable", record=member[:200], error=reason)
                self.unreadable[member] = reason
                continue
            self.unreadable.pop(member, None)
            yield entry

    def _call(
        self,
        verb: Verb,
        identity: ProcessIdentity,
        rest: list[str] | None = None,
        given: Mapping[str, Value] = MappingProxyType({}),
    ) -> list[str]:
        named = {
            "epoch": keys.EPOCH,
            "process": keys.process(identity),
            "processes": keys.PROCESSES,
            "events": keys.FLEET_EVENTS,
        }
        names = {name: named[name] for name in script(verb).keys}
        arguments: dict[str, Value] = {
            "identity": str(identity),
            "ttl_ms": self._ttl_ms,
            "keep_ms": KEEP_LAPSED_MS,
            **given,
        }
        return call(self._client, verb, names, arguments, rest or [])


def _identity(member: str) -> ProcessIdentity | None:
    """Whose record an entry of the index names; None if no process's."""
    try:
        return ProcessIdentity.parse(member)
    except ValueError:
        return None


def _parse(member: str, fields: Any, lease_left_seconds: float) -> ProcessEntry:
    """A record as it was answered.

    Raises:
        ValueError: It is none.
        redis.ResponseError: The key holds something else.
    """
    if isinstance(fields, Exception):
        raise fields
    try:
        decoded = {name: json.loads(value) for name, value in fields.items()}
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    facts = {"lease_left_seconds": max(0.0, lease_left_seconds)}
    return ProcessEntry(**{**decoded, **facts, "identity": ProcessIdentity.parse(member)})


class ProcessRecord:
    """This process's own entry; without a registry it is written nowhere.

    Args:
        registry: Where the record is kept, or None outside a fleet.
        kind: The role of this process.
        parent: Pid of the process above it.
        fields: What else is known from the start, such as `gpu` or `slots`.
    """

    def __init__(
        self,
        registry: ProcessRegistry | None = None,
        kind: ProcessKind = ProcessKind.TRIAL,
        parent: int = 0,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        self.identity = ProcessIdentity.current()
        self._registry = registry
        self._fields: dict[str, Any] = {
            "kind": kind.value,
            "user": os.getuid(),
            "parent": parent,
            "started_at": round(time.time(), 3),
            "shared_memory": shared_memory_prefixes(self.identity.pid),
            **(fields or {}),
        }
        self._scratch: list[str] = []

    @property
    def is_registered(self) -> bool:
        """Whether this process is part of a fleet."""
        return self._registry is not None

    @property
    def is_draining(self) -> bool:
        """Whether the record says that this worker takes no more trials."""
        return bool(self._fields.get("is_draining", False))

    @property
    def stalled(self) -> list[str]:
        """What this process could not do so far, as the record says."""
        return list(self._fields.get("stalled", []))

    @property
    def parent(self) -> int:
        """Pid of the process above it."""
        return int(self._fields["parent"])

    @property
    def device(self) -> str:
        """The name of what its trials run on; empty outside a fleet."""
        return str(self._fields.get("device", ""))

    @property
    def gpu(self) -> str | None:
        """What its trials run on, as people are shown it."""
        shown: str | None = self._fields.get("gpu")
        return shown

    @property
    def aside(self) -> str | None:
        """Why its slot takes no trials, as the record says."""
        reason: str | None = self._fields.get("aside")
        return reason

    @property
    def assignment(self) -> dict[str, Any]:
        """The study and the trial that this process works on now."""
        return {"study": self._fields.get("study"), "trial": self._fields.get("trial")}

    def register(self) -> None:
        """Write the whole record."""
        if self._registry is not None:
            self._registry.register(self.identity, self._fields)

    def note(self, **fields: Any) -> None:
        """Note what was written into the record's fields by a script."""
        self._fields.update(fields)

    def update(self, **fields: Any) -> None:
        """Change fields of the record."""
        self.note(**fields)
        # the whole of it: Redis may have lost what was there
        self.register()

    def beat(self) -> None:
        """Keep the record; write it again if Redis lost it."""
        if self._registry is not None and not self._registry.beat(self.identity):
            self.register()

    def gone(self) -> None:
        """Drop the record: this process leaves."""
        if self._registry is not None:
            self._registry.gone(self.identity, EventKind.LEFT)

    def add_scratch(self, path: Path) -> None:
        """Name a scratch directory; to be called before it is made."""
        self._scratch.append(str(path))
        self.update(scratch=self._scratch)

    def drop_scratch(self, path: Path) -> None:
        """Forget a scratch directory that was removed."""
        if str(path) in self._scratch:
            self._scratch.remove(str(path))
            self.update(scratch=self._scratch)
