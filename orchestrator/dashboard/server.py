"""Serves the page until it is interrupted.

Invariant: the token is told once, to whoever starts it, and is in no log.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvicorn

from orchestrator.dashboard.app import make_app
from orchestrator.dashboard.door import Door
from workers.protocol.errors import FleetError
from workers.protocol.plain import describe_error
from workers.settings import Settings

#: How long requests may take to end when the server does.
_GRACE_SECONDS: Final = 3

#: Connections that are answered at once; further ones are told to come again.
_MAX_CONNECTIONS: Final = 256


@dataclass(frozen=True)
class Certificate:
    """What the page is served over TLS with.

    Raises:
        FleetError: A file cannot be read, or the two do not belong together.
    """

    certfile: Path
    """The certificate, with those between it and its root."""
    keyfile: Path | None = None
    """Its key, if that is not in the same file; without a password."""

    def __post_init__(self) -> None:
        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            # a password is asked of nobody: a service has no terminal
            context.load_cert_chain(self.certfile, self.keyfile, password=lambda: b"")
        except (OSError, ValueError) as error:
            told = getattr(error, "strerror", None) or describe_error(error, 200)
            key = "" if self.keyfile is None else f" --keyfile {self.keyfile}"
            raise FleetError(
                f"--certfile {self.certfile}{key}: {told}; give a certificate and its key as PEM,"
                " the key without a password"
            ) from error


def serve(
    settings: Settings,
    door: Door,
    port: int,
    tell: Callable[[str], None],
    certificate: Certificate | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        settings: Where the fleet is.
        door: Who may come in, and at which host.
        port: 0 for one that is free.
        tell: Is given the link, with the token, once the page is there.
        certificate: By default, plain HTTP is spoken.

    Raises:
        FleetError: The address cannot be had.
    """
    server: uvicorn.Server | None = None

    def is_closing() -> bool:
        return server is not None and server.should_exit

    with listen(door.host, port) as listening:
        config = uvicorn.Config(
            make_app(settings, door, is_closing=is_closing),
            log_level="critical",
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            ws="none",
            lifespan="off",
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            ssl_certfile=None if certificate is None else certificate.certfile,
            ssl_keyfile=None if certificate is None else certificate.keyfile,
        )
        server = uvicorn.Server(config)
        tell(link(door, listening.getsockname()[1]))
        server.run(sockets=[listening])


def link(door: Door, port: int) -> str:
    """The page's address with the token in its fragment, which browsers send nowhere."""
    host = f"[{door.host}]" if ":" in door.host else door.host
    address = door.public_url or f"{'https' if door.has_tls else 'http'}://{host}:{port}"
    return f"{address}/#token={door.token}"


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        FleetError: The address cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        told = getattr(error, "strerror", None) or str(error)
        raise FleetError(
            f"--host {host} --port {port}: {told}; choose another port, or --port 0 for a free one"
        ) from error
