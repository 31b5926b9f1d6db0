"""Connections to the fleet's Redis, with the retries and the refusals that the protocol needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from workers.protocol.errors import InvalidInputError, RedisUnavailableError
from workers.settings import Settings

#: Where a worker or a command looks if neither the environment nor an embedded server says.
DEFAULT_URL: Final = "redis://127.0.0.1:6379/0"

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


def redact(url: str) -> str:
    """The URL without its password, for messages and logs."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}"))


def connect(settings: Settings, *, check: bool = True) -> redis.Redis:
    """Open a client for the fleet's Redis.

    Args:
        settings: Name the server.
        check: Ask the server for an answer, and for an eviction policy that loses nothing.

    Raises:
        RedisUnavailableError: It does not answer, or it refuses the password.
        InvalidInputError: The URL is none, or the server evicts keys.
    """
    url = resolve_url(settings)
    try:
        client = redis.Redis.from_url(
            url,
            decode_responses=True,
            # whatever somebody wrote there, and whatever a user's text holds
            encoding_errors="backslashreplace",
            socket_connect_timeout=3.0,
            socket_timeout=_SOCKET_TIMEOUT_SECONDS,
            health_check_interval=30,
            retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=1.0), 3),
        )
    except ValueError as error:
        raise InvalidInputError(
            f"FLEET_REDIS_URL={redact(url)!r} is no Redis URL: {error};"
            " write redis://[:password@]host:port/db"
        ) from error
    if check:
        _check(client, url)
    return client


def _check(client: redis.Redis, url: str) -> None:
    try:
        client.ping()
    except redis.RedisError as error:
        raise RedisUnavailableError(
            f"Redis at {redact(url)} does not answer ({error}); start it, or set FLEET_REDIS_URL"
        ) from error
    try:
        policy = client.config_get("maxmemory-policy").get("maxmemory-policy", "noeviction")
    except redis.ResponseError:
        return  # a managed server that hides its configuration
    if policy != "noeviction":
        raise InvalidInputError(
            f"Redis at {redact(url)} has maxmemory-policy={policy}, which throws trials away"
            " when memory is short; set it to noeviction"
        )
