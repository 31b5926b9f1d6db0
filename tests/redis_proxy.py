"""A TCP proxy before Redis, for tests that look at what passes through it or meddle with it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Self


class Relay:
    """What becomes of the pieces of one connection; by itself, all are handed on."""

    def asks(self, request: bytes) -> None:
        """A piece from the client, about to be handed on."""

    def answers(self, reply: bytes) -> bool:
        """Whether to hand on a piece from the server; else both sides are closed."""
        del reply
        return True


class RedisProxy:
    """Listens on loopback and forwards to a server on loopback; use as a context manager."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def relay(self) -> Relay:
        """Who sees to a new connection."""
        return Relay()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        relay = self.relay()
        with client, socket.create_connection(("127.0.0.1", self._server_port)) as server:
            back = threading.Thread(target=_answer, args=(server, client, relay), daemon=True)
            back.start()
            for request in _pieces(client):
                relay.asks(request)
                with suppress(OSError):
                    server.sendall(request)
            _end(server, client)
            back.join()


def _answer(server: socket.socket, client: socket.socket, relay: Relay) -> None:
    for reply in _pieces(server):
        if not relay.answers(reply):
            break
        with suppress(OSError):
            client.sendall(reply)
    _end(server, client)


def _pieces(source: socket.socket) -> Iterator[bytes]:
    """What comes, until nothing more does."""
    with suppress(OSError):
        while piece := source.recv(1 << 20):
            yield piece


def _end(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
