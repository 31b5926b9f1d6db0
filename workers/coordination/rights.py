"""What each role of a fleet may do on its Redis: the one list of commands, keys and channels.

A role's commands are those that it sends by itself, with redis-py and Celery, and those that its
scripts call: Redis holds these against the caller's rights, too.

Invariant: asking for what a user lacks changes nothing, and needs no right that the role does not
need anyway.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import redis

from workers.coordination import keys
from workers.coordination.scripts import Verb, script
from workers.coordination.sentinels import probing


class Role(StrEnum):
    """In which part a process speaks to Redis; each may have a user of its own."""

    WORKER = "worker"
    """`celery -A workers worker`, with its pool and loader processes."""
    ORCHESTRATOR = "orchestrator"
    """`trialfleet serve`."""
    USER = "user"
    """Commands that hand in, change or delete studies, and scripts that do."""
    VIEWER = "viewer"
    """Commands that only look, and the web page for whoever may not act."""

    @property
    def described(self) -> str:
        """As a sentence names it."""
        return {
            Role.WORKER: "a worker",
            Role.ORCHESTRATOR: "an orchestrator",
            Role.USER: "a command that acts",
            Role.VIEWER: "a command that looks",
        }[self]


@dataclass(frozen=True)
class Rights:
    """Commands by their names in access rules, and patterns of keys and channels."""

    commands: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.commands or self.keys or self.channels)

    def __str__(self) -> str:
        named = {"": self.commands, "keys ": self.keys, "channels ": self.channels}
        return "; ".join(what + ", ".join(each) for what, each in named.items() if each)

    @property
    def rules(self) -> str:
        """As `ACL SETUSER` takes them."""
        named = {"~": self.keys, "&": self.channels, "+": self.commands}
        rules = [sign + each for sign, found in named.items() for each in found]
        # before Redis 7 a user has all channels unless told otherwise, and takes no single one
        return " ".join(["resetchannels"] * ("psubscribe" in self.commands) + rules)


@dataclass(frozen=True)
class _Part:
    """What a role does: which scripts it runs, what it sends beside them, and on which keys."""

    commands: str
    keys: tuple[str, ...]
    verbs: tuple[Verb, ...] = ()
    channels: tuple[str, ...] = field(default=())

    @property
    def rights(self) -> Rights:
        called = {name for verb in self.verbs for name in script(verb).commands}
        return Rights(tuple(sorted({*self.commands.split(), *called})), self.keys, self.channels)


#: Of all that a fleet keeps, any study's, trial's, process's.
_STUDY: Final = keys.study("*")
_SHARED: Final = (
    keys.EPOCH,
    keys.FLEET,
    keys.STUDIES,
    keys.OVER,
    keys.DELETED,
    keys.PROCESSES,
    keys.process("*"),
    keys.FLEET_EVENTS,
    keys.events("*"),
    _STUDY,
)
_TRIALS: Final = (
    keys.trial("*", "*"), keys.leases("*"), keys.queued("*"), keys.paused("*"), keys.inbox("*"),
    keys.reply("*", "*", "*"), keys.output("*", "*"),
)  # fmt: skip
_CELERY: Final = f"{keys.CELERY_PREFIX}*"

#: What looking at a fleet takes: nothing of it writes, whatever keys it is allowed on.
_VIEWING: Final = _Part(
    commands="ping info time multi get hget hmget hexists hgetall sismember smembers zrangebyscore"
    " zscore xrange",
    keys=(
        keys.FLEET, keys.STUDIES, keys.DELETED, keys.PROCESSES, keys.process("*"),
        keys.FLEET_EVENTS, keys.events("*"), _STUDY, keys.trial("*", "*"), keys.output("*", "*"),
    ),
)  # fmt: skip

_PARTS: Final = {
    Role.WORKER: _Part(
        commands="ping info time multi exec watch evalsha script|load script|exists"
        " get set del hget hmget hset hdel hgetall sismember smismember smembers sadd srem llen"
        " lpush rpush brpop blpop zadd zrange zrem zscore zrangebyscore zremrangebyscore"
        " psubscribe punsubscribe",
        keys=(*_SHARED, *_TRIALS, keys.code("*"), keys.device("*"), keys.cleanup("*"), _CELERY),
        verbs=(
            "claim", "renew", "report", "suggest", "take", "checkpoint", "commit", "release",
            "fail", "park", "reap", "begin_anew",
            "process_register", "process_beat", "process_gone",
            "cleanup_acquire", "cleanup_renew", "cleanup_done", "wish", "print",
        ),
        # gossip, by which a worker that takes no message notices that its connection is lost
        channels=(keys.GOSSIP,),
    ),
    Role.ORCHESTRATOR: _Part(
        commands="ping info time multi exec evalsha script|load"
        " get set del exists scan hget hmget hset hsetnx hdel hgetall smismember smembers"
        " sadd srem sdiff sscan zremrangebyscore llen lpush lrange ltrim pexpire zrange"
        " zrangebyscore zrem zscore xadd xrange persist xreadgroup xautoclaim xack xdel xlen"
        " xgroup|create xgroup|delconsumer xinfo|consumers",
        keys=(
            *_SHARED, *_TRIALS, keys.DELETING, keys.set_aside("*"), keys.orders("*"),
            keys.code("*"), keys.lead("*"), _CELERY,
        ),
        verbs=(
            "enqueue", "reply", "settle", "unpark", "reap", "lead", "unlead", "wish", "stop",
            "publish", "begin", "drop_orders", "respec", "reseal", "ship", "unship",
            "handed", "process_register", "process_beat", "process_gone",
        ),
    ),
    Role.USER: _Part(
        commands=f"{_VIEWING.commands} evalsha script|load"
        " set hset hsetnx hincrby hdel sadd srem zrem xadd",
        keys=(
            *_SHARED, keys.DELETING, keys.orders("*"), keys.code("*"), keys.trial("*", "*"),
            keys.output("*", "*"),
        ),
        verbs=("wish", "hand_in", "respec", "order", "ship", "unship"),
    ),
    Role.VIEWER: _VIEWING,
}  # fmt: skip

#: A whole call of each command, with KEY and CHANNEL for one of the role's.
_CALLS: Final = {
    "blpop": "KEY 1",
    "brpop": "KEY 1",
    "del": "KEY",
    "evalsha": f"{'0' * 40} 1 KEY",
    "exec": "",
    "exists": "KEY",
    "get": "KEY",
    "hdel": "KEY -",
    "hexists": "KEY -",
    "hget": "KEY -",
    "hgetall": "KEY",
    "hincrby": "KEY - 1",
    "hkeys": "KEY",
    "hlen": "KEY",
    "hmget": "KEY -",
    "hset": "KEY - -",
    "hsetnx": "KEY - -",
    "info": "server",
    "llen": "KEY",
    "lpush": "KEY -",
    "lrange": "KEY 0 0",
    "ltrim": "KEY 0 0",
    "multi": "",
    "persist": "KEY",
    "pexpire": "KEY 1",
    "ping": "",
    "psubscribe": "CHANNEL",
    "pttl": "KEY",
    "punsubscribe": "CHANNEL",
    "rpush": "KEY -",
    "sadd": "KEY -",
    "scan": "0",
    "script|exists": "0" * 40,
    "script|load": "return",
    "set": "KEY -",
    "sdiff": "KEY",
    "sismember": "KEY -",
    "smismember": "KEY -",
    "smembers": "KEY",
    "srem": "KEY -",
    "sscan": "KEY 0",
    "time": "",
    "watch": "KEY",
    "xack": "KEY - 0-0",
    "xadd": "KEY * - -",
    "xautoclaim": "KEY - - 0 0-0",
    "xdel": "KEY 0-0",
    "xgroup|create": "KEY - 0",
    "xgroup|delconsumer": "KEY - -",
    "xinfo|consumers": "KEY -",
    "xlen": "KEY",
    "xrange": "KEY 0-0 0-0",
    "xreadgroup": "GROUP - - STREAMS KEY >",
    "zadd": "KEY 0 -",
    "zrange": "KEY 0 0",
    "zrangebyscore": "KEY 0 0",
    "zrem": "KEY -",
    "zremrangebyscore": "KEY 0 0",
    "zscore": "KEY -",
}

#: Those that a key can be tried with: to read it, and to write to it.
_READING: Final = ("get", "hget", "hgetall", "zscore", "smembers")
_WRITING: Final = ("set", "hset", "hdel", "sadd", "zrem")


def rights_of(role: Role) -> Rights:
    """All that a role needs."""
    return _PARTS[role].rights


def user_line(role: Role, user: str) -> str:
    """The command that makes a user with what a role needs, and no more."""
    return f"ACL SETUSER {user} reset on >PASSWORD {rights_of(role).rules}"


def missing_rights(client: redis.Redis, role: Role) -> Rights:
    """What a role needs and this client's user lacks.

    Calls are queued in a transaction: the server holds them against the user's rights at once, and
    throws them away when the connection is closed.

    Raises:
        redis.RedisError: The server does not answer.
    """
    needed = rights_of(role)
    connection = client.connection_pool.get_connection()
    try:
        with probing(connection):
            return _missing(connection, needed)
    finally:
        connection.disconnect()
        client.connection_pool.release(connection)


def _missing(connection: redis.Connection, needed: Rights) -> Rights:
    # the first two mean something else inside of one
    early = [name for name in ("watch", "exec", "multi") if name in needed.commands]
    denied = _denied_commands(connection, early, needed)
    if "multi" in denied:
        return needed
    denied |= _denied_commands(
        connection, [name for name in needed.commands if name not in early], needed
    )
    allowed = [name for name in needed.commands if name not in denied]
    return Rights(
        tuple(name for name in needed.commands if name in denied),
        _denied_keys(connection, needed, allowed),
        _denied_channels(connection, needed.channels, allowed),
    )


def _denied_commands(
    connection: redis.Connection, names: Sequence[str], needed: Rights
) -> set[str]:
    channel = next(iter(needed.channels), "")
    calls = [_call(name, needed.keys[0], channel) for name in names]
    return {
        name
        for name, answer in zip(names, _answers(connection, calls), strict=True)
        if "run the" in answer
    }


def _denied_keys(
    connection: redis.Connection, needed: Rights, allowed: Collection[str]
) -> tuple[str, ...]:
    patterns = needed.keys
    tried = [names for names in (_READING, _WRITING) if set(names) & set(needed.commands)]
    probes = [next((name for name in names if name in allowed), None) for names in tried]
    if None in probes:
        return tuple(patterns)  # without a command to use them, it matters little
    denied = {
        pattern
        for probe in filter(None, probes)
        for pattern, answer in zip(
            patterns,
            _answers(connection, [_call(probe, pattern, "") for pattern in patterns]),
            strict=True,
        )
        if answer
    }
    return tuple(pattern for pattern in patterns if pattern in denied)


def _denied_channels(
    connection: redis.Connection, patterns: Sequence[str], allowed: Iterable[str]
) -> tuple[str, ...]:
    if "psubscribe" not in allowed:
        return tuple(patterns)
    answers = _answers(connection, [_call("psubscribe", "", pattern) for pattern in patterns])
    return tuple(pattern for pattern, answer in zip(patterns, answers, strict=True) if answer)


def _call(name: str, key: str, channel: str) -> list[str]:
    stand_for = {"KEY": key, "CHANNEL": channel}
    # in lower case, as the libraries write none: who looks at the server can tell them apart
    return [*name.split("|"), *(stand_for.get(word, word) for word in _CALLS[name].split())]


def _answers(connection: redis.Connection, calls: Sequence[Sequence[str]]) -> list[str]:
    """What the server has against each call; empty where it may be made."""
    connection.send_packed_command(connection.pack_commands(calls), check_health=False)
    return [_read_refusal(connection) for _ in calls]


def _read_refusal(connection: redis.Connection) -> str:
    try:
        connection.read_response()
    except redis.exceptions.NoPermissionError as error:
        return str(error)
    except redis.ResponseError as error:  # mostly of another kind: the call itself may be made
        return str(error) if "NOPERM" in str(error) else ""  # of EXEC in other words
    return ""
