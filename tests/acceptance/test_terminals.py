"""Terminals that close under a `trialfleet run` and a worker."""

from __future__ import annotations

import sys

from terminal import Terminal
from waiting import wait_until

from workers.protocol.states import TrialState


def test_a_run_drains_when_its_terminal_closes(machine):
    command = ["trialfleet", "run", str(machine.write_loop(trials=2)), "--slots", "1"]
    machine.hold()
    with Terminal(command, machine.environment, machine.folder) as terminal:
        held = machine.await_held()
        assert "running" in terminal.screen
        terminal.close()
        assert terminal.process.wait(60) == 130
    assert machine.processes("main") == []
    assert {event["trial"] for event in machine.events("released")} == {
        entry.trial for entry in held
    }
    assert machine.status().trials["queued"] == 2


def test_a_worker_drains_when_its_terminal_closes(fleet):
    fleet.order("stay until go", step=4)
    fleet.submit()
    fleet.serve()
    command = [sys.executable, "-m", "celery", "-A", "workers", "worker"]
    environment = {**fleet.environment(), "FLEET_SLOTS": "1"}
    with Terminal(command, environment, fleet.folder) as terminal:
        fleet.await_note("stay until go")
        assert "claimed" in terminal.screen
        terminal.close()
        wait_until(lambda: fleet.record().state == TrialState.QUEUED, "it is given back")
        assert fleet.record().failures == 0
        assert terminal.process.wait(60) == 0
    fleet.go()
    fleet.worker()
    fleet.await_over()
    fleet.assert_sound(attempts={0: 2})
