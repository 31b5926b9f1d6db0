"""Serves the page until it is interrupted.

Invariant: the token is told once, to whoever starts it, and is in no log.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

import uvicorn

from orchestrator.dashboard.app import make_app
from orchestrator.dashboard.door import Door
from workers.protocol.errors import FleetError
from workers.settings import Settings

#: How long requests may take to end when the server does.
_GRACE_SECONDS: Final = 3

#: Connections that are answered at once; further ones are told to come again.
_MAX_CONNECTIONS: Final = 256


def serve(settings: Settings, door: Door, port: int, tell: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        settings: Where the fleet is.
        door: Who may come in, and at which host.
        port: 0 for one that is free.
        tell: Is given the link, with the token, once the page is there.

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
        )
        server = uvicorn.Server(config)
        tell(link(door, listening.getsockname()[1]))
        server.run(sockets=[listening])


def link(door: Door, port: int) -> str:
    """The page's address with the token in its fragment, which browsers send nowhere."""
    host = f"[{door.host}]" if ":" in door.host else door.host
    return f"http://{host}:{port}/#token={door.token}"


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
