"""A server that accepts and says nothing is not waited for by every retry within a retry."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
import redis
from redis.backoff import NoBackoff

from workers.coordination import bounded_retry
from workers.coordination.bounded_retry import BoundedRetry

_TIMEOUT_SECONDS = 0.1


@pytest.fixture
def mute() -> Iterator[tuple[int, list[socket.socket]]]:
    """The port of a server that answers nothing, and whom it accepted."""
    accepted: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    accepted.append(server.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1], accepted
        server.shutdown(socket.SHUT_RDWR)
    thread.join()
    for connection in accepted:
        connection.close()


def _client(port: int, retry: BoundedRetry) -> redis.Redis:
    return redis.Redis(port=port, socket_timeout=_TIMEOUT_SECONDS, retry=retry)


def test_what_takes_long_is_not_tried_again_within_what_is_tried_again(
    mute: tuple[int, list[socket.socket]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_retry, "RETRY_WITHIN_SECONDS", 1.5 * _TIMEOUT_SECONDS)
    port, accepted = mute
    with _client(port, BoundedRetry(NoBackoff(), 3)) as client:
        pipeline = client.pipeline(transaction=False)
        pipeline.ping()
        with pytest.raises(redis.TimeoutError):
            pipeline.execute()
    assert len(accepted) == 2  # 4 by connecting alone


def test_what_fails_at_once_is_tried_again() -> None:
    tried, failed = [], []

    def fail_twice() -> str:
        tried.append(1)
        if len(tried) < 3:
            raise redis.ConnectionError("reset")
        return "done"

    retry = BoundedRetry(NoBackoff(), 3)
    assert retry.call_with_retry(fail_twice, failed.append) == "done"
    assert len(failed) == 2


def test_the_time_is_that_of_the_outermost_and_the_next_one_has_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(bounded_retry.time, "monotonic", lambda: now[0])
    retry, inner = BoundedRetry(NoBackoff(), 3), BoundedRetry(NoBackoff(), 3)
    tried = []

    def time_out() -> None:
        tried.append(now[0])
        now[0] += 10.0
        raise redis.TimeoutError("mute")

    for begun in (100.0, 500.0):
        now[0] = begun
        tried.clear()
        with pytest.raises(redis.TimeoutError):
            retry.call_with_retry(
                lambda: inner.call_with_retry(time_out, lambda _error: None), lambda _error: None
            )
        assert tried == [begun, begun + 10.0]
