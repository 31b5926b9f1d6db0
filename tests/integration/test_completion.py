"""What a shell completes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

from orchestrator.commands.completion import complete_study
from workers.coordination.studies import Studies, ensure_epoch
from workers.protocol.spec import StudySpec


def test_names_of_studies_are_completed(client, settings, monkeypatch):
    for name, value in settings.to_environment().items():
        monkeypatch.setenv(name, value)
    ensure_epoch(client)
    for name in ("reviews", "reviews-2", "texts"):
        Studies(client).submit(StudySpec(name=name, objective="m:f"))
    assert complete_study("rev") == ["reviews", "reviews-2"]
    assert complete_study("") == ["reviews", "reviews-2", "texts"]
    completed = subprocess.run(
        [sys.executable, "-m", "orchestrator"],
        env={
            **os.environ,
            "_TRIALFLEET_COMPLETE": "complete_bash",
            "COMP_WORDS": "trialfleet status te",
            "COMP_CWORD": "2",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert completed.stdout.split() == ["texts"], completed.stderr


def test_a_fleet_that_does_not_answer_holds_up_nobody_and_says_nothing(monkeypatch, capfd):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("FLEET_REDIS_URL", f"redis://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        assert complete_study("") == []
        assert time.monotonic() - began < 3.0
    monkeypatch.setenv("FLEET_TIME_SCALE", "none")
    assert complete_study("") == []
    assert capfd.readouterr() == ("", "")
