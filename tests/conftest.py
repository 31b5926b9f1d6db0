"""Fixtures for all tests: one real Redis a session, emptied for each, and nothing left behind."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import redis
import structlog
from hub_server import HubServer
from hypothesis import HealthCheck
from hypothesis import settings as properties
from isolation import isolated
from waiting import wait_until

from orchestrator.local.servers import EmbeddedRedis, find_servers
from workers import passwords
from workers.processes.gpus import count_gpus
from workers.protocol.errors import InvalidInputError
from workers.settings import Settings

#: How quick an example is says how busy the machine is.
properties.register_profile("fleet", deadline=None, suppress_health_check=[HealthCheck.too_slow])
properties.load_profile("fleet")

#: Before anything imports torch, here and in what is started: its threads that wait for one another
#: keep a core each busy else, and several tests at once, five times as many as they need.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

#: Before any other file imports the libraries that read its address.
_HUB = HubServer()
_HUB.become_the_hub()


def pytest_configure(config: pytest.Config) -> None:
    stack = ExitStack()
    stack.enter_context(isolated(os.environ.get("PYTEST_XDIST_WORKER")))
    stack.enter_context(_HUB)
    config.add_cleanup(stack.close)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked `long` alone")
    parser.addoption("--slow", action="store_true", help="run the soaks too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = bool(config.getoption("--long"))
    chosen = [item for item in items if bool(item.get_closest_marker("long")) is wanted]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="a long soak; run with --slow"))
        if item.get_closest_marker("gpu") and not count_gpus():
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device here"))


def pytest_collection_finish() -> None:
    # no collection need look at what the tests import; pool processes begin their trials like this
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    """A real Redis for the whole session."""
    try:
        find_servers()
    except InvalidInputError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as started:
        yield started


@pytest.fixture
def client(server: EmbeddedRedis) -> Iterator[redis.Redis]:
    """A client of an empty database."""
    connection = redis.Redis.from_url(server.url, decode_responses=True)
    connection.flushall()
    yield connection
    connection.close()


@pytest.fixture
def settings(server: EmbeddedRedis, client: redis.Redis, tmp_path: Path) -> Settings:
    """Settings of a fleet on the session's Redis: a home and a cache of its own, quick clocks."""
    return Settings(
        redis_url=server.url, home=tmp_path / "home", cache=tmp_path / "cache", time_scale=0.1
    )


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """The hub of this process and of those that it starts, without repositories and faults."""
    yield _HUB
    _HUB.clear()


@pytest.fixture(autouse=True)
def no_password_of_another_test() -> Iterator[None]:
    """What one test calls a password is a word in the next."""
    yield
    passwords._known.clear()


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """What one test sets of the log, such as its level, hides nothing from the next."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: no process, no shared memory, no scratch directory more than before."""
    if "server" in request.fixturenames or "client" in request.fixturenames:
        request.getfixturevalue("server")
    before = _leftovers()
    yield
    wait_until(lambda: not (_leftovers() - before), f"left behind: {_leftovers() - before}")


def _leftovers() -> set[str]:
    processes = {
        f"process {child.pid} {name}"
        for child in psutil.Process().children(recursive=True)
        if "resource_tracker" not in (name := _command(child)) and name
    }
    shared = {str(path) for path in Path("/dev/shm").glob("*")}
    scratch = Path(tempfile.gettempdir()) / f"trialfleet-{os.getuid()}"
    return processes | shared | {str(path) for path in scratch.glob("*")}


def _command(process: psutil.Process) -> str:
    """The command line; empty for a process that has ended."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return ""
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
