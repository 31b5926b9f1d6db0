"""The guides, followed: each file written, each command typed, in order, in an empty folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from guide import blocks_of
from waiting import wait_until

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "ops" / "guides"
PAGES = sorted(page.relative_to(GUIDES) for page in GUIDES.rglob("*.md"))
WALKS = [page for page in PAGES if any(b.language == "bash" for b in blocks_of(GUIDES / page))]

#: Pages for who comes from elsewhere: a study before and after, much like one another.
ALIKE = {page for page in WALKS if page.parts[0] == "coming-from"}

#: What a page calls the port of the Redis that it starts.
PORT = "6389"


class Reader:
    """Somebody who does what a page says, in one terminal; what it exports stays."""

    def __init__(self, machine):
        self._machine = machine
        self._exports = machine.folder / "exports"
        self._exports.touch()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = str(free.getsockname()[1])

    def command(self, text):
        asked = text.replace(PORT, self._port)
        script = f"source {self._exports}\n{asked}\nexport -p > {self._exports}"
        return {
            "args": ["bash", "-euo", "pipefail", "-c", script],
            "cwd": self._machine.folder,
            "env": self._machine.environment,
        }

    def run(self, block):
        ended = subprocess.run(
            **self.command(block.text), capture_output=True, text=True, timeout=240, check=False
        )
        assert ended.returncode == 0, f"{block.text}\n{ended.stdout}\n{ended.stderr}"

    def _is_listening(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", int(self._port))) == 0

    @contextmanager
    def running(self, block):
        """A command that goes on until the reader is done, and is then interrupted."""
        log = self._machine.folder / "background.log"
        with log.open("a") as sink:
            process = subprocess.Popen(
                **self.command(block.text), stdout=sink, stderr=sink, start_new_session=True
            )
        try:
            if PORT in block.text:
                wait_until(self._is_listening, "the server of the page is up", 60.0)
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(120)


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.long] if page in ALIKE else []) for page in WALKS],
    ids=str,
)
def test_each_command_of_a_guide_does_what_it_says(page, machine):
    reader = Reader(machine)
    with ExitStack() as behind:
        for block in blocks_of(GUIDES / page):
            if block.mark.startswith("elsewhere"):
                continue
            if block.file is not None:
                (machine.folder / block.file).write_text(block.text)
            elif block.language == "bash" and block.mark:
                behind.enter_context(reader.running(block))
            elif block.language == "bash":
                reader.run(block)
