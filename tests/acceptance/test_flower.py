"""Celery's own events, by choice: the real Flower sees workers and the messages of trials."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import closing, contextmanager

import pytest
from waiting import wait_until

pytest.importorskip("flower")


@contextmanager
def flower(fleet):
    """Flower of this fleet, on loopback: asks it for a document of its API."""
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    log = fleet.settings.home / "logs" / "flower.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    words = ["-A", "workers", "flower", "--address=127.0.0.1", f"--port={port}"]
    environment = {**fleet.environment(), "FLOWER_UNAUTHENTICATED_API": "true"}

    def ask(path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError:
            raise
        except OSError:  # it has not begun to listen
            return None

    with (
        log.open("wb") as sink,
        subprocess.Popen(
            [sys.executable, "-m", "celery", *words],
            env=environment,
            cwd=fleet.folder,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
        ) as process,
    ):
        try:
            wait_until(lambda: ask("/api/tasks") is not None, "Flower answers", 120)
            yield ask
        finally:
            process.terminate()
            process.wait(60)


def states(ask):
    found = ask("/api/tasks").values()
    return {each["name"] for each in found}, [each["state"] for each in found]


def workers(ask):
    return ask("/workers?json=1")["data"]


@contextmanager
def listening(fleet):
    """Tells how many of Celery's events of tasks were sent meanwhile."""
    found = []
    with fleet.client.pubsub() as listener:
        listener.psubscribe("*")

        def count():
            while (message := listener.get_message(timeout=0.5)) is not None:
                found.extend(re.findall(r"\btask\.(?:multi|started)", f"{message}"))
            return len(found)

        yield count


@pytest.mark.long
def test_flower_sees_workers_and_tasks_while_trials_run(fleet):
    fleet.order("stay until go", step=4)
    fleet.submit(3)
    with flower(fleet) as ask, listening(fleet) as num_told:
        fleet.serve()
        fleet.worker(FLEET_CELERY_EVENTS="true")
        fleet.await_note("stay until go")
        wait_until(lambda: "STARTED" in states(ask)[1], "it sees the one that runs")
        wait_until(
            lambda: [(each["status"], each["active"]) for each in workers(ask)] == [(True, 1)],
            "it sees the worker at work, of which each heartbeat tells",
        )
        fleet.go()
        fleet.await_over()
        wait_until(lambda: states(ask)[1].count("SUCCESS") >= 3, "it sees them end")
        assert states(ask)[0] == {"workers.tasks.run_trial"}
        assert num_told()
    fleet.assert_sound(3)


@pytest.mark.long
def test_without_the_choice_no_worker_tells_of_tasks(fleet):
    fleet.submit()
    with listening(fleet) as num_told:
        fleet.serve()
        fleet.worker()
        fleet.await_over()
        assert not num_told()
