"""The documentation, followed: each file written, each command typed, in order.

A page of `ops/guides` is followed in an empty folder, one of `ops/deploy` where its files lie, and
the README in a fresh clone. The runbook is followed by `test_deploy.py`.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest
from guide import ROOT, blocks_of, pages
from postgres import Postgres
from s3_server import CREDENTIALS, S3Server
from waiting import wait_until

from orchestrator.local.servers import find_servers

DEPLOY, GUIDES = Path("ops/deploy"), Path("ops/guides")
README, RUNBOOK, STORAGE = Path("README.md"), DEPLOY / "RUNBOOK.md", GUIDES / "storage.md"

WALKS = [
    page
    for page in pages()
    if page != RUNBOOK and any(block.is_to_be_run for block in blocks_of(ROOT / page))
]

#: Pages for who comes from elsewhere: a study before and after, much like one another.
ALIKE = {page for page in WALKS if page.is_relative_to(GUIDES / "coming-from")}

#: What one turns to after the tour, one's own training and a fleet.
LATER = {
    GUIDES / f"{name}.md"
    for name in ("a-study-in-your-hand", "models-of-texts", "searching", "storage", "watching")
}

#: The README's installs all that there is.
LONG = {*ALIKE, *LATER, README}

#: What pages call the ports that they open, each of which is free here.
PORTS = ("6379", "6389", "8000", "8001", "9464", "9465")


def free_ports() -> dict[str, str]:
    """A free port for each of them; those that follow one another still do.

    They are below those that systems give out by themselves, so that nobody is given one before the
    page opens it.
    """
    while True:
        with ExitStack() as held:
            first = random.randrange(20_000, 32_768 - len(PORTS))
            ports = range(first, first + len(PORTS))
            try:
                for port in ports:
                    held.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return dict(zip(PORTS, map(str, ports), strict=True))


class Reader:
    """Somebody who does what a page says, in one terminal; what it exports stays.

    Args:
        machine: Where.
        place: What stands for names on the page that are nobody's here.
    """

    def __init__(self, machine, place):
        self._machine = machine
        self._exports = machine.home.with_name("exports")
        self._exports.touch()
        self._place = {**free_ports(), **place}
        names = "|".join(map(re.escape, self._place))
        self._names = re.compile(rf"(?<!\w)(?:{names})(?!\w)")

    def command(self, text):
        asked = self._names.sub(lambda found: self._place[found[0]], text)
        script = f"source {self._exports}\n{asked}\nexport -p > {self._exports}"
        return {
            "args": ["bash", "-euo", "pipefail", "-c", script],
            "cwd": self._machine.folder,
            "env": self._machine.environment,
        }

    def run(self, block):
        ended = subprocess.run(
            **self.command(block.text), capture_output=True, text=True, timeout=1800, check=False
        )
        assert ended.returncode == 0, f"{block.text}\n{ended.stdout}\n{ended.stderr}"

    def _listens(self, port):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(self._place[port]))) == 0

    @contextmanager
    def running(self, block):
        """A command that goes on until the reader is done, and is then interrupted."""
        log = self._machine.home.with_name("background.log")
        with log.open("a") as sink:
            process = subprocess.Popen(
                **self.command(block.text), stdout=sink, stderr=sink, start_new_session=True
            )
        try:
            for port in PORTS:
                if port in block.text:
                    wait_until(lambda port=port: self._listens(port), f"{port} answers", 60.0)
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(120)


@pytest.fixture
def ground(page, machine):
    """What a page takes for granted is there: its own files, and servers; their names here."""
    if page == README:
        machine.folder /= "clone"
        subprocess.run(["git", "clone", "-q", ROOT, machine.folder], check=True)
        del machine.environment["FLEET_HOME"]  # the quickstart has one of its own
        yield {"./ops/quickstart": "./ops/quickstart --trials 2"}
        return
    if page.is_relative_to(DEPLOY):
        own = shutil.ignore_patterns("secrets")
        shutil.copytree(ROOT / DEPLOY, machine.folder / DEPLOY, ignore=own)
        programs = machine.folder / "programs"
        programs.mkdir()
        (programs / "valkey-server").symlink_to(find_servers()[0])
        machine.environment["PATH"] += f"{os.pathsep}{programs}"
    if page != STORAGE:
        yield {}
        return
    with Postgres() as database, S3Server() as store:
        machine.environment |= CREDENTIALS
        httpx.put(f"{store.url}/bucket").raise_for_status()
        yield {
            "postgresql+psycopg://user@host/fleet": database.url,
            "https://minio.example:9000": store.url,
        }
        kept = httpx.get(f"{store.url}/bucket?list-type=2").text
        assert kept.count("x.txt") == 4, "results lie in the store"
        with psycopg.connect(database.url.replace("+psycopg", "")) as asked:
            assert asked.execute("SELECT count(*) FROM trials").fetchone() == (4,)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.long] if page in LONG else []) for page in WALKS],
    ids=str,
)
def test_each_command_of_a_page_does_what_it_says(page, machine, ground):
    reader = Reader(machine, ground)
    with ExitStack() as behind:
        for block in blocks_of(ROOT / page):
            if block.is_elsewhere:
                continue
            if block.file is not None:
                (machine.folder / block.file).write_text(block.text)
            elif block.language == "bash" and block.mark:
                behind.enter_context(reader.running(block))
            elif block.language == "bash":
                reader.run(block)
