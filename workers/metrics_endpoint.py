"""The Prometheus endpoint of a process: where it listens, and that it is there only if asked for.

Invariant: it costs its process nothing but the answer to whoever asks; one that cannot be opened
is told in one line, and keeps nothing from running.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple

from workers.logs import get_logger
from workers.settings import Settings

if TYPE_CHECKING:
    from threading import Thread
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import CollectorRegistry
    from prometheus_client.registry import Collector

log = get_logger(__name__)


@contextmanager
def metrics_served(
    settings: Settings,
    make: Callable[[], Collector],
    tell: Callable[[str], None] = lambda _line: None,
) -> Iterator[None]:
    """Serve a process's metrics meanwhile, if its settings ask for that.

    Args:
        settings: Where it listens: `metrics_host`, `metrics_port`.
        make: Makes what is served beside the process's own memory and processor time; called
            only where something is.
        tell: Where people are to read where it listens, or why it does not, beside the log.
    """
    endpoint = None if settings.metrics_port is None else _open(settings, tell)
    if endpoint is None:
        yield
        return
    try:
        endpoint.fill(make)
        url = f"http://{_written(settings.metrics_host)}:{endpoint.server.server_port}/metrics"
        log.info("metrics_served", url=url)
        tell(f"metrics: {url}")
        yield
    finally:
        endpoint.close()


class _Endpoint(NamedTuple):
    """A server, its thread, and what it serves."""

    server: WSGIServer
    thread: Thread
    registry: CollectorRegistry

    def fill(self, make: Callable[[], Collector]) -> None:
        from prometheus_client import Info, PlatformCollector, ProcessCollector

        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        Info("trialfleet", "The release.", registry=self.registry).info(
            {"version": version("trialfleet")}
        )
        self.registry.register(make())

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def _open(settings: Settings, tell: Callable[[str], None]) -> _Endpoint | None:
    """Listen, and serve nothing yet; None, and told, where that cannot be."""
    if importlib.util.find_spec("prometheus_client") is None:
        missing = "prometheus-client is missing: pip install 'trialfleet[metrics]'"
        _tell_trouble(settings, missing, tell)
        return None
    from prometheus_client import CollectorRegistry, start_http_server

    registry = CollectorRegistry()
    try:
        server, thread = start_http_server(
            settings.metrics_port or 0, settings.metrics_host, registry=registry
        )
    except OSError as error:
        way_out = "set FLEET_METRICS_PORT and FLEET_METRICS_HOST to where this host may listen"
        _tell_trouble(settings, f"{error}; {way_out}", tell)
        return None
    return _Endpoint(server, thread, registry)


def _tell_trouble(settings: Settings, reason: str, tell: Callable[[str], None]) -> None:
    address = f"{_written(settings.metrics_host)}:{settings.metrics_port}"
    log.warning("metrics_not_served", address=address, error=reason, hint="the rest goes on")
    tell(f"no metrics at {address}: {reason}")


def _written(host: str) -> str:
    """A host as URLs have it."""
    return f"[{host}]" if ":" in host else host
