"""The sentinels of the fleet's Redis: whether a replica would take over, and what would be lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import redis

from orchestrator.doctor.findings import Finding, error, ok, warning
from workers.coordination.address import Address, parse_address
from workers.coordination.connection import resolve_url
from workers.protocol.plain import describe_error, plain_text
from workers.settings import Settings

#: With fewer, the end of one leaves no majority that could agree on a new primary.
_LEAST: Final = 3


@dataclass(frozen=True)
class SentinelFacts:
    """What was seen of them."""

    #: What each knows of the service, by its host and port.
    states: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: Why others did not say.
    silent: Mapping[str, str] = field(default_factory=dict)
    #: Of the primary, as `INFO replication` has it; empty where the server hides it.
    replication: Mapping[str, Any] = field(default_factory=dict)

    @property
    def known(self) -> int:
        """How many sentinels watch the service, by those that know of most."""
        others = [int(state["num-other-sentinels"]) for state in self.states.values()]
        return 1 + max(others, default=0)


def look(client: redis.Redis, settings: Settings) -> SentinelFacts:
    """See how they are."""
    address = parse_address(resolve_url(settings))
    states, silent = {}, {}
    for host, port in address.sentinels:
        named = f"{host}:{port}"
        try:
            states[named] = _ask(host, port, address)
        except (redis.RedisError, KeyError) as problem:
            silent[named] = plain_text(describe_error(problem, 200))
    replication: dict[str, Any] = {}
    with suppress(redis.ResponseError):  # hidden from this user
        replication = client.info("replication")
    return SentinelFacts(states, silent, replication)


def answers(facts: SentinelFacts) -> Finding:
    """Whether each one says what it knows."""
    if facts.silent:
        told = "; ".join(f"{named}: {why}" for named, why in facts.silent.items())
        return warning("sentinels", told, "start those, or mend FLEET_REDIS_URL")
    return ok("sentinels", f"all {len(facts.states)} that FLEET_REDIS_URL names answer")


def majority(facts: SentinelFacts) -> Finding:
    """Whether enough of them are there to agree on a new primary."""
    quorum = max((int(state["quorum"]) for state in facts.states.values()), default=1)
    needed = max(facts.known // 2 + 1, quorum)
    told = f"{len(facts.states)} of {facts.known} answer here, {needed} have to agree"
    if len(facts.states) + len(facts.silent) >= facts.known and len(facts.states) < needed:
        return error("majority", f"{told}: no replica can take over", "start the others")
    if facts.known < _LEAST:
        fix = "a third sentinel, on a host of its own"
        return warning("majority", f"{told}: where one is gone, no replica takes over", fix)
    return ok("majority", told)


def agreement(facts: SentinelFacts) -> Finding:
    """Whether they mean the same server."""
    primaries = sorted({f"{state['ip']}:{state['port']}" for state in facts.states.values()})
    if len(primaries) > 1:
        told = f"they name different primaries: {', '.join(primaries)}"
        return error("primary", told, "SENTINEL RESET NAME on those that are wrong")
    return ok("primary", ", ".join(primaries))


def replicas(facts: SentinelFacts) -> Finding:
    """Whether there is one that could take over."""
    count = int(facts.replication.get("connected_slaves", 1))
    if not count:
        fix = "replicaof HOST PORT, and masterauth, on another server"
        return error("replicas", "the primary has none: nobody can take over", fix)
    return ok("replicas", f"{count}" if facts.replication else "hidden by the server")


def lost_writes(facts: SentinelFacts) -> Finding:
    """Whether a primary that is cut off would go on to take writes."""
    # servers tell the one only where the other is asked for
    if facts.replication and "min_slaves_good_slaves" not in facts.replication:
        told = "a primary that is cut off from its replica goes on to take writes, which are lost"
        fix = (
            "CONFIG SET min-replicas-to-write 1 min-replicas-max-lag 10, and in redis.conf, on each"
        )
        return warning("min-replicas-to-write", told, fix)
    return ok("min-replicas-to-write", "asked for" if facts.replication else "hidden")


CHECKS: Final[tuple[Callable[[SentinelFacts], Finding], ...]] = (
    answers, majority, agreement, replicas, lost_writes,
)  # fmt: skip


def _ask(host: str, port: int, address: Address) -> Mapping[str, Any]:
    with redis.Redis(host, port, decode_responses=True, **address.sentinel_options) as sentinel:
        masters: Mapping[str, Mapping[str, Any]] = sentinel.sentinel_masters()
    if address.service not in masters:
        raise KeyError(f"it watches no {address.service!r}, but {', '.join(masters) or 'none'}")
    return masters[address.service]
