"""Connections to the fleet's Redis, with the retries and the refusals that the protocol needs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from workers.coordination.address import Address, parse_address
from workers.logs import get_logger
from workers.protocol.errors import InvalidInputError, RedisUnavailableError
from workers.settings import Settings

log = get_logger(__name__)

#: Where a worker or a command looks if neither the environment nor an embedded server says.
DEFAULT_URL: Final = "redis://127.0.0.1:6379/0"

#: The oldest servers that have what the scripts use.
LEAST_VERSIONS: Final = {"Redis": (6, 2), "Valkey": (7, 2)}

#: Between two attempts to reach a Redis that is waited for.
_RETRY_SECONDS: Final = 0.5

#: Longer than any blocking read (5 s), shorter than the holder's patience (40 s).
_SOCKET_TIMEOUT_SECONDS: Final = 10.0


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


def connect(settings: Settings, *, check: bool = True) -> redis.Redis:
    """Open a client for the fleet's Redis.

    Args:
        settings: Name the server.
        check: Ask the server for an answer, and for an eviction policy that loses nothing.

    Raises:
        RedisUnavailableError: It does not answer, or it refuses the password.
        InvalidInputError: The URL is none, or the server evicts keys.
    """
    address = parse_address(resolve_url(settings))
    try:
        client = redis.Redis.from_url(
            address.client_url,
            decode_responses=True,
            # whatever somebody wrote there, and whatever a user's text holds
            encoding_errors="backslashreplace",
            socket_connect_timeout=3.0,
            socket_timeout=_SOCKET_TIMEOUT_SECONDS,
            health_check_interval=30,
            retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=1.0), 3),
            **address.tls,
        )
    except (ValueError, redis.RedisError) as error:
        raise InvalidInputError(f"FLEET_REDIS_URL = {address} cannot be used: {error}") from error
    if check:
        _check(client, address)
    return client


def await_connection(settings: Settings, is_over: Callable[[], bool]) -> redis.Redis | None:
    """Open a client, for as long as it takes until Redis answers; None if that is over before.

    Raises:
        InvalidInputError: Waiting would not help: the URL is none, Redis refuses us, or it evicts.
    """
    told = False
    while not is_over():
        try:
            return connect(settings)
        except RedisUnavailableError as error:
            if isinstance(error.__cause__, redis.AuthenticationError):
                raise
            if not told:
                log.warning("redis_awaited", error=str(error), hint="waiting for it to come up")
                told = True
            time.sleep(_RETRY_SECONDS)
    return None


def _check(client: redis.Redis, address: Address) -> None:
    try:
        client.ping()
    except redis.RedisError as error:
        raise RedisUnavailableError(
            f"Redis at {address} does not answer ({error}); start it, or set FLEET_REDIS_URL"
        ) from error
    try:
        _check_server(client.info("server"), address)
        policy = client.config_get("maxmemory-policy").get("maxmemory-policy", "noeviction")
    except redis.ResponseError:
        return  # a managed server that hides its configuration
    if policy != "noeviction":
        raise InvalidInputError(
            f"Redis at {address} has maxmemory-policy={policy}, which throws trials away"
            " when memory is short; set it to noeviction"
        )


def _check_server(info: Mapping[str, Any], address: Address) -> None:
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
