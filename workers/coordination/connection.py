"""Connections to the fleet's Redis, with the retries and the refusals that the protocol needs."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import redis
from redis.backoff import ExponentialWithJitterBackoff

from workers.coordination.address import Address, parse_address
from workers.coordination.bounded_retry import BoundedRetry
from workers.coordination.rights import Role, missing_rights
from workers.coordination.sentinels import UnknownServiceError, open_client
from workers.logs import get_logger
from workers.protocol.errors import (
    InvalidInputError,
    RedisUnavailableError,
    RightsMissingError,
)
from workers.settings import Settings

log = get_logger(__name__)

#: Where a worker or a command looks if neither the environment nor an embedded server says.
DEFAULT_URL: Final = "redis://127.0.0.1:6379/0"

#: The oldest servers that have what the scripts use.
LEAST_VERSIONS: Final = {"Redis": (6, 2), "Valkey": (7, 2)}

#: What concerns all that is done with Redis, and not the one thing that it was seen at.
GENERAL_ERRORS: Final = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.exceptions.NoPermissionError,
)

#: What a server answers to whatever it is asked, or to all that writes; also out of a script.
_GENERAL_ANSWER: Final = re.compile(
    r"\b(OOM|READONLY|MISCONF|LOADING|MASTERDOWN|NOREPLICAS|UNBLOCKED|CLUSTERDOWN|BUSY|NOAUTH"
    r"|NOPERM)\b"
)

#: What somebody has to do about a server that refuses all that writes, and more.
_MAKE_ROOM: Final = "make room on the disk of that server"
_RAISE_LIMIT: Final = "raise its maxmemory, or delete studies that are over"

#: What a server adds to the errors of its scripts.
_OF_A_SCRIPT: Final = re.compile(r" script: [0-9a-f]{40}, on @user_script:\d+\.?$")

#: Between two attempts to reach a Redis that is waited for.
_RETRY_SECONDS: Final = 0.5

#: Longer than any blocking read (5 s), shorter than the holder's patience (40 s).
_SOCKET_TIMEOUT_SECONDS: Final = 10.0


def is_general(error: redis.RedisError) -> bool:
    """Whether an error concerns all that is done with Redis, and not the one thing asked for."""
    is_of_what_was_asked = isinstance(error, (redis.ResponseError, redis.DataError))
    if isinstance(error, GENERAL_ERRORS) or not is_of_what_was_asked:
        return True
    if isinstance(error, redis.exceptions.OutOfMemoryError):  # its text is without the code
        return True
    return _GENERAL_ANSWER.search(str(error)) is not None


def endpoint_file(home: Path) -> Path:
    """Where an embedded server publishes its URL, readable by its owner only."""
    return home / "redis" / "endpoint.json"


def resolve_url(settings: Settings) -> str:
    """`FLEET_REDIS_URL`, else the embedded server of `FLEET_HOME`, else the usual local port."""
    if settings.redis_url:
        return settings.redis_url
    try:
        endpoint = json.loads(endpoint_file(settings.home).read_text())
        return str(endpoint["url"])
    except (FileNotFoundError, ValueError, KeyError):
        return DEFAULT_URL


def connect(settings: Settings, role: Role, *, check: bool = True) -> redis.Redis:
    """Open a client for the fleet's Redis.

    Args:
        settings: Name the server.
        role: What this process is to the fleet, and so what it must be allowed to do.
        check: Ask the server for an answer, for the rights of the role, and for an eviction policy
            that loses nothing.

    Raises:
        RedisUnavailableError: It does not answer, or it refuses the password.
        RightsMissingError: Its user may not do all that the role does.
        InvalidInputError: The URL is none, or the server evicts keys.
    """
    address = parse_address(resolve_url(settings))
    if check and settings.redis_url is None and not endpoint_file(settings.home).exists():
        _refuse_absent(address, settings)
    client = _open(address)
    if check:
        _check(client, role, settings)
    return client


def _refuse_absent(address: Address, settings: Settings) -> None:
    """Refuse a server that nobody has named and that is not there, without trying for seconds."""
    with closing(_open(address, retries=0)) as client:
        try:
            client.ping()
        except redis.exceptions.BusyLoadingError:
            return  # it reads its data
        except redis.ConnectionError as error:
            raise unavailable(error, settings) from error
        except redis.RedisError:
            return  # it is there: what is wrong with it is told by whoever looks closer


def _open(address: Address, retries: int = 3) -> redis.Redis:
    options: dict[str, Any] = {
        "decode_responses": True,
        # whatever somebody wrote there, and whatever a user's text holds
        "encoding_errors": "backslashreplace",
        "socket_connect_timeout": 3.0,
        "socket_timeout": _SOCKET_TIMEOUT_SECONDS,
        "health_check_interval": 30,
        "retry": BoundedRetry(ExponentialWithJitterBackoff(base=0.05, cap=1.0), retries),
    }
    try:
        if address.sentinels:
            return open_client(address, **options)
        return redis.Redis.from_url(address.client_url, **options, **address.tls)
    except (ValueError, redis.RedisError) as error:
        raise InvalidInputError(f"FLEET_REDIS_URL = {address} cannot be used: {error}") from error


def name_missing(client: redis.Redis, role: Role, settings: Settings) -> str | None:
    """What this client's user lacks of a role's rights, and the way out; None if it has all.

    Raises:
        redis.RedisError: The server does not answer.
    """
    missing = missing_rights(client, role)
    if not missing:
        return None
    address = parse_address(resolve_url(settings))
    user = address.username or "default"
    return (
        f"Redis at {address}: user {user!r} lacks what {role.described} needs: {missing};"
        f" give it: ACL SETUSER {user} {missing.rules}"
    )


def describe_trouble(
    error: redis.RedisError, client: redis.Redis, role: Role, settings: Settings
) -> str:
    """What is wrong with Redis, and the way out where it refuses what this process does."""
    is_refused = isinstance(error, redis.exceptions.NoPermissionError)
    if is_refused and (refused := lacking(client, role, settings)) is not None:
        return str(refused)
    address = parse_address(resolve_url(settings))
    way_out = way_out_of(error)
    text = text_of(error)
    return f"Redis at {address} refuses: {text}; {way_out}" if way_out else text


def unavailable(error: redis.RedisError, settings: Settings) -> RedisUnavailableError:
    """What is said of a server that does not answer, or refuses whatever it is asked."""
    address = parse_address(resolve_url(settings))
    if (way_out := way_out_of(error)) is not None:
        return RedisUnavailableError(f"Redis at {address} refuses: {text_of(error)}; {way_out}")
    return RedisUnavailableError(
        f"Redis at {address} does not answer ({error}); start it, or set FLEET_REDIS_URL"
    )


def is_at_rest(error: RedisUnavailableError, settings: Settings) -> bool:
    """Whether there is no fleet to be asked: none is named, and none answers by itself.

    Args:
        error: What was said of the server that was looked for.
        settings: What names it.
    """
    cause = error.__cause__
    is_there = isinstance(cause, redis.RedisError) and (
        isinstance(cause, redis.exceptions.BusyLoadingError) or way_out_of(cause) is not None
    )
    return settings.redis_url is None and not is_there


def way_out_of(error: redis.RedisError) -> str | None:
    """What to do about a server that is there, and refuses whatever it is asked; else None."""
    if isinstance(error, redis.exceptions.OutOfMemoryError):
        return _RAISE_LIMIT
    return _MAKE_ROOM if str(error).startswith("MISCONF") else None


def text_of(error: Exception) -> str:
    """What an error says, the same from a script as from any other command."""
    return _OF_A_SCRIPT.sub("", str(error))


def lacking(client: redis.Redis, role: Role, settings: Settings) -> RightsMissingError | None:
    """What is said of a user who may not do all that a role does; None for one who may."""
    try:
        missing = name_missing(client, role, settings)
    except redis.RedisError:
        return None
    return None if missing is None else RightsMissingError(missing)


def await_connection(
    settings: Settings, role: Role, is_over: Callable[[], bool], *, is_known: bool = False
) -> redis.Redis | None:
    """Open a client, for as long as it takes until Redis answers; None if that is over before.

    Args:
        settings: Name the server.
        role: What this process is to the fleet.
        is_over: Whether to wait no longer.
        is_known: Whether this server has taken us before: what it refuses now it may give back.

    Raises:
        InvalidInputError: Waiting would not help: the URL is none, Redis refuses us, or it evicts.
    """
    told = False
    while not is_over():
        try:
            return connect(settings, role)
        except (RedisUnavailableError, RightsMissingError) as error:
            is_refused = isinstance(error, RightsMissingError) or isinstance(
                error.__cause__, redis.AuthenticationError
            )
            if is_refused and not is_known:
                raise
            if not told:
                log.warning("redis_awaited", error=str(error), hint="waiting for it to come up")
                told = True
            time.sleep(_RETRY_SECONDS)
    return None


def _check(client: redis.Redis, role: Role, settings: Settings) -> None:
    address = parse_address(resolve_url(settings))
    try:
        with suppress(redis.exceptions.NoPermissionError):  # named with all else that it may not do
            client.ping()
        missing = name_missing(client, role, settings)
    except UnknownServiceError as error:
        raise InvalidInputError(f"FLEET_REDIS_URL = {address}: {error}") from error
    except redis.RedisError as error:
        raise unavailable(error, settings) from error
    if missing is not None:
        raise RightsMissingError(missing)
    try:
        check_server(client.info("server"), address)
        policy = client.info("memory").get("maxmemory_policy", "noeviction")
    except redis.ResponseError:
        return  # a managed server that hides what it is
    if policy != "noeviction":
        raise InvalidInputError(
            f"Redis at {address} has maxmemory-policy={policy}, which throws trials away"
            " when memory is short; set it to noeviction"
        )


def check_server(info: Mapping[str, Any], address: Address) -> None:
    """Refuse a server whose commands the fleet's scripts cannot rely on.

    Raises:
        InvalidInputError: It is too old, or a member of a cluster.
    """
    if info.get("redis_mode") == "cluster" or info.get("server_mode") == "cluster":
        raise InvalidInputError(
            f"{address} is a member of a Redis Cluster, which is not supported: a script of the"
            " fleet touches keys of several slots; use one Redis or Valkey"
        )
    is_valkey = "valkey_version" in info
    name = "Valkey" if is_valkey else "Redis"
    version = str(info.get("valkey_version") or info.get("redis_version", ""))
    least = LEAST_VERSIONS[name]
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if len(numbers) == 2 and numbers < least:
        raise InvalidInputError(
            f"{address} is {name} {version}; the fleet needs Redis 6.2 or later, or Valkey 7.2 or"
            " later"
        )
