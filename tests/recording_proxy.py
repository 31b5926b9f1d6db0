"""A TCP proxy before Redis that notes the commands which pass through it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Self


class RecordingProxy:
    """Listens on loopback and forwards to a server on loopback; use as a context manager."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._streams: list[bytearray] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def commands(self) -> Iterator[list[str]]:
        """All whole commands that were sent, each as its words."""
        for stream in list(self._streams):
            yield from _commands(bytes(stream))

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        seen = bytearray()
        self._streams.append(seen)
        with client, socket.create_connection(("127.0.0.1", self._server_port)) as server:
            back = threading.Thread(target=_pour, args=(server, client), daemon=True)
            back.start()
            _pour(client, server, seen)
            back.join()


def _pour(source: socket.socket, sink: socket.socket, seen: bytearray | None = None) -> None:
    """Hand on what comes, until one side has had enough."""
    with suppress(OSError):
        while piece := source.recv(1 << 20):
            if seen is not None:
                seen += piece
            sink.sendall(piece)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _commands(stream: bytes) -> Iterator[list[str]]:
    """Requests as clients write them: arrays of counted strings."""
    at = 0
    while at < len(stream):
        words: list[str] = []
        try:
            num_words, at = _number(stream, at)
            for _ in range(num_words):
                size, at = _number(stream, at)
                words.append(stream[at : at + size].decode(errors="replace"))
                at += size + 2
        except ValueError:
            return  # the connection ended in the middle of it
        yield words


def _number(stream: bytes, at: int) -> tuple[int, int]:
    """The count behind `*` or `$`, and where its line ends."""
    end = stream.index(b"\r\n", at)
    return int(stream[at + 1 : end]), end + 2
