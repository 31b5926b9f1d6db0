"""The fleet's Redis: whether it keeps what it is told, answers in time, and takes this user."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import redis

from orchestrator.doctor.findings import Finding, error, ok, warning
from orchestrator.views.amounts import size
from workers.coordination import keys
from workers.coordination.address import Address, parse_address
from workers.coordination.clock import server_time_ms
from workers.coordination.connection import check_server, name_missing, resolve_url
from workers.coordination.rights import Role, missing_rights, rights_of
from workers.disk.fleet_home import FleetHome
from workers.protocol.errors import InvalidInputError
from workers.settings import Settings

#: Each may be as late as that before it is worth a line.
_SLOW_SECONDS: Final = 0.05
_SKEW_SECONDS: Final = 2.0

#: Parts of its memory.
_NEARLY_FULL: Final = 0.8
_FULL: Final = 0.95

_PINGS: Final = 5

#: How many keys are looked at for those of others.
_SAMPLE: Final = 1000

_LOOPBACK: Final = ("127.", "localhost", "[::1]")


@dataclass(frozen=True)
class RedisFacts:
    """What was seen of a server."""

    address: Address
    #: As `INFO` has it; empty where the server hides it.
    info: Mapping[str, Any] = field(default_factory=dict)
    latency_seconds: float = 0.0
    #: How far its clock is ahead of this host's.
    skew_seconds: float = 0.0
    #: What this user may not do, by role, each with the line that gives it.
    missing: Mapping[Role, str] = field(default_factory=dict)
    #: Whether it has all that looking takes, and nothing of what acting takes beyond.
    may_only_look: bool = False
    #: Keys that are none of a fleet's; None where this user may not look.
    foreign_keys: tuple[str, ...] | None = ()
    #: Why the home here is not this fleet's.
    home_trouble: str | None = None


def look(client: redis.Redis, settings: Settings) -> RedisFacts:
    """See how the server is.

    Raises:
        redis.RedisError: It does not answer.
    """
    took = [_timed(client.ping) for _ in range(_PINGS)]
    info: dict[str, Any] = {}
    with suppress(redis.ResponseError):  # hidden from this user, or by a managed server
        info = client.info()
    before = time.time()
    server = server_time_ms(client) / 1000
    after = time.time()
    missing = {role: name_missing(client, role, settings) for role in Role}
    only_looks = may_only_look(client)
    return RedisFacts(
        address=parse_address(resolve_url(settings)),
        info=info,
        latency_seconds=statistics.median(took),
        skew_seconds=server - (before + after) / 2,
        missing={role: text for role, text in missing.items() if text is not None},
        may_only_look=only_looks,
        foreign_keys=None if only_looks else _foreign_keys(client),
        home_trouble=_home_trouble(client, settings),
    )


def may_only_look(client: redis.Redis) -> bool:
    """Whether this user is one that was made to look: it has no command with which others act."""
    acting = set(rights_of(Role.USER).commands) - set(rights_of(Role.VIEWER).commands)
    lacks = set(missing_rights(client, Role.USER).commands)
    return acting <= lacks and not missing_rights(client, Role.VIEWER)


def answers(facts: RedisFacts) -> Finding:
    """How long it takes to answer."""
    took = f"{facts.latency_seconds * 1000:.1f} ms"
    if facts.latency_seconds > _SLOW_SECONDS:
        fix = "bring Redis nearer to the fleet, or see `redis-cli --latency` and SLOWLOG GET"
        return warning("latency", f"{facts.address} takes {took} to answer", fix)
    return ok("latency", f"{facts.address} answers in {took}")


def version(facts: RedisFacts) -> Finding:
    """Whether its commands are those that the scripts use."""
    try:
        check_server(facts.info, facts.address)
    except InvalidInputError as problem:
        return error("version", str(problem), "install Valkey 8 or Redis 7, and start that")
    if facts.info.get("role") == "slave":
        primary = f"{facts.info.get('master_host')}:{facts.info.get('master_port')}"
        fix = f"FLEET_REDIS_URL=redis://{primary}/0, or sentinel://... that follows the primary"
        return error("version", f"it is a replica of {primary}, and takes no writes", fix)
    name = "Valkey" if "valkey_version" in facts.info else "Redis"
    told = facts.info.get("valkey_version") or facts.info.get("redis_version") or "hides it"
    return ok("version", f"{name} {told}")


def eviction(facts: RedisFacts) -> Finding:
    """Whether it throws keys away when its memory is short."""
    policy = facts.info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        told = f"maxmemory-policy {policy} throws trials away when memory is short"
        fix = "redis-cli CONFIG SET maxmemory-policy noeviction, and the same in redis.conf"
        return error("maxmemory-policy", told, fix)
    return ok("maxmemory-policy", policy)


def memory(facts: RedisFacts) -> Finding:
    """How much of its memory is left."""
    used = int(facts.info.get("used_memory", 0))
    limit = int(facts.info.get("maxmemory", 0))
    whole = limit or int(facts.info.get("total_system_memory", 0))
    told = f"{size(used)} of {size(whole)}" if whole else size(used)
    fix = "redis-cli CONFIG SET maxmemory BYTES, or `trialfleet delete` studies that are over"
    if limit and used > _FULL * limit:
        return error("memory", f"{told} are in use: writes are about to be refused", fix)
    if whole and used > _NEARLY_FULL * whole:
        return warning("memory", f"{told} are in use", fix)
    return ok("memory", f"{told} in use")


def persistence(facts: RedisFacts) -> Finding:
    """Whether it has its data after a restart."""
    failing = [
        name
        for name in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
        if facts.info.get(name, "ok") != "ok"
    ]
    if failing:
        told = f"it cannot write its files ({', '.join(failing)})"
        fix = "make room on the disk of its `dir`, and see its log"
        return error("persistence", told, fix)
    if facts.info and not int(facts.info.get("aof_enabled", 0)):
        told = "no append-only file: a restart loses what runs, and its trials begin again"
        fix = "redis-cli CONFIG SET appendonly yes, and the same in redis.conf"
        return warning("persistence", told, fix)
    return ok("persistence", "append-only file" if facts.info else "hidden by the server")


def clock(facts: RedisFacts) -> Finding:
    """Whether this host and the server agree on the time."""
    if abs(facts.skew_seconds) > _SKEW_SECONDS:
        ahead = "ahead of" if facts.skew_seconds > 0 else "behind"
        told = f"its clock is {abs(facts.skew_seconds):.0f} s {ahead} this host's"
        return warning("clock", told, "timedatectl set-ntp true, on both")
    return ok("clock", f"{facts.skew_seconds * 1000:+.0f} ms against this host's")


def rights(facts: RedisFacts) -> Finding:
    """Whether this user may do what commands do; workers and orchestrators may have others."""
    if facts.may_only_look:
        return ok("rights", "this user may look, and what acts is refused")
    if Role.USER in facts.missing:
        told, _, fix = facts.missing[Role.USER].rpartition(" give it: ")
        return error("rights", told.removesuffix(";"), fix)
    roles = [role.described for role in Role if role not in facts.missing]
    return ok("rights", f"this user may be {', '.join(roles)}")


def transport(facts: RedisFacts) -> Finding:
    """Whether others can read or write what goes there."""
    address = facts.address
    places = address.place.split(",")
    is_here = address.transport == "unix" or all(map(_is_loopback, places))
    if address.transport != "unix" and not address.is_tls and not is_here:
        told = f"passwords and data go to {address.place} in clear text"
        secure = "rediss+sentinel" if address.sentinels else "rediss"
        return warning("transport", told, f"give Redis a certificate, and write {secure}://")
    if address.is_tls and not address.tls.get("ssl_cert_reqs"):
        told = "its certificate is not verified"
        return warning("transport", told, "FLEET_REDIS_URL without ssl_cert_reqs=none")
    if address.password is None and not is_here:
        told = "it asks for no password: whoever reaches it can do anything to the fleet"
        return warning("transport", told, "the users of workers/coordination/README.md")
    return ok("transport", address.transport)


def tenants(facts: RedisFacts) -> Finding:
    """Whether the server's data, and the home here, are this fleet's alone."""
    if facts.home_trouble is not None:
        told, _, fix = facts.home_trouble.partition(". ")
        return error("one fleet", told, fix or "FLEET_HOME or FLEET_REDIS_URL of the same fleet")
    if facts.foreign_keys:
        shown = ", ".join(key[:40] for key in facts.foreign_keys[:3])
        told = f"others keep keys in database {facts.address.db}, such as {shown}"
        return warning(
            "one fleet", told, "a database of its own: another number in FLEET_REDIS_URL"
        )
    if facts.foreign_keys is None:
        return ok("one fleet", "home and Redis belong together; this user may not list keys")
    return ok("one fleet", "home and Redis belong together, and all keys are the fleet's")


CHECKS: Final[tuple[Callable[[RedisFacts], Finding], ...]] = (
    answers, version, eviction, memory, persistence, clock, rights, transport, tenants,
)  # fmt: skip


def _is_loopback(place: str) -> bool:
    return place.startswith(_LOOPBACK)


def _timed(call: Callable[[], Any]) -> float:
    before = time.perf_counter()
    call()
    return time.perf_counter() - before


def _foreign_keys(client: redis.Redis) -> tuple[str, ...] | None:
    try:
        _, found = client.scan(count=_SAMPLE)
    except redis.ResponseError:
        return None
    own = f"{keys.EPOCH.partition(':')[0]}:"
    return tuple(sorted(key for key in found if not key.startswith(own)))


def _home_trouble(client: redis.Redis, settings: Settings) -> str | None:
    try:
        FleetHome(client, settings.home).check()
    except InvalidInputError as problem:
        return str(problem)
    return None
