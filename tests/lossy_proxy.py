"""A proxy before Redis that loses the reply to every script once, after the script has run."""

from __future__ import annotations

import threading

from redis_proxy import RedisProxy, Relay

from workers.coordination import keys

#: What every request that runs a script holds, and those of Celery hold beside.
_SCRIPT, _CELERYS = b"EVALSHA", keys.CELERY_PREFIX.encode()


class LossyProxy(RedisProxy):
    """The first time that it sees a request with a script, it closes the connection for a reply.

    The same request, made again, gets its reply.
    """

    def __init__(self, server_port: int) -> None:
        super().__init__(server_port)
        self._seen: set[bytes] = set()
        self._lock = threading.Lock()
        #: how many replies were lost
        self.lost = 0

    def relay(self) -> Relay:
        return _Loss(self)

    def is_lossy(self, request: bytes) -> bool:
        """Whether a request's reply is to be lost."""
        if _SCRIPT not in request or _CELERYS in request:
            return False
        with self._lock:
            is_new = request not in self._seen
            self._seen.add(request)
            return is_new


class _Loss(Relay):
    def __init__(self, proxy: LossyProxy) -> None:
        self._proxy = proxy
        self._loses = threading.Event()

    def asks(self, request: bytes) -> None:
        if self._proxy.is_lossy(request):
            self._loses.set()

    def answers(self, reply: bytes) -> bool:
        if self._loses.is_set() and not reply.startswith(b"-NOSCRIPT"):
            self._proxy.lost += 1
            return False
        self._loses.clear()
        return True
