"""A TCP proxy before Redis that loses the reply to every script once, after the script has run."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self

from workers.coordination import keys

#: What every request that runs a script holds, and those of Celery hold beside.
_SCRIPT, _CELERYS = b"EVALSHA", keys.CELERY_PREFIX.encode()


class LossyProxy:
    """Listens on loopback and forwards to a server on loopback; use as a context manager.

    The first time that it sees a request with a script, it hands it on, waits for the reply, and
    closes the connection in its place. The same request, made again, gets its reply.
    """

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._seen: set[bytes] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        #: how many replies were lost
        self.lost = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._server_port)) as server:
            loses = threading.Event()
            back = threading.Thread(target=self._answer, args=(server, client, loses), daemon=True)
            back.start()
            with suppress(OSError):
                while request := client.recv(1 << 20):
                    if self._is_lossy(request):
                        loses.set()
                    server.sendall(request)
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)
            back.join()

    def _answer(self, server: socket.socket, client: socket.socket, loses: threading.Event) -> None:
        with suppress(OSError):
            while reply := server.recv(1 << 20):
                if loses.is_set() and not reply.startswith(b"-NOSCRIPT"):
                    self.lost += 1
                    break
                loses.clear()
                client.sendall(reply)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def _is_lossy(self, request: bytes) -> bool:
        if _SCRIPT not in request or _CELERYS in request:
            return False
        with self._lock:
            is_new = request not in self._seen
            self._seen.add(request)
            return is_new
