"""The event log of a live fleet whose members are killed: who died, where, and what then."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager

import pytest
from fault_fleet import signal_all, tree_of
from prometheus_client.parser import text_string_to_metric_families
from waiting import wait_until

from orchestrator.storage.event_file import events_file
from workers.coordination.identity import hostname


def command(fleet, *words):
    return [sys.executable, "-m", "orchestrator.cli", *map(str, words)], fleet.environment()


def say(fleet, *words):
    line, environment = command(fleet, *words)
    finished = subprocess.run(
        line, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@contextmanager
def following(fleet):
    """What `events --follow` prints meanwhile, when it has ended by itself."""
    line, environment = command(fleet, "events", "fault", "--follow")
    path = fleet.folder / "followed"
    with path.open("wb") as sink:
        process = subprocess.Popen(line, env=environment, stdout=sink, stderr=subprocess.PIPE)
    found = []
    try:
        wait_until(lambda: path.stat().st_size, "it follows")
        yield found
        assert process.wait(60) == 0, process.stderr.read()
        found += map(json.loads, path.read_text().splitlines())
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def scrape(fleet, name):
    """What the first member tells Prometheus whose log has a name: by sample and its labels."""
    log = (fleet.settings.home / "logs" / name).read_text()
    served = next(line for line in log.splitlines() if '"metrics_served"' in line)
    with urllib.request.urlopen(json.loads(served)["url"], timeout=30) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {
        (sample.name.removeprefix("trialfleet_"), *sorted(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def await_counts_of_one_kill(fleet):
    """After its first process was killed, while the second one runs."""
    expected = {
        ("claims_total", "fault"): 2,
        ("requeues_total", "died", "fault"): 1,
        ("losses_total", "died", "fault"): 1,
        ("claim_latency_seconds_count", "fault"): 2,
        ("trials", "fault", "running"): 1,
        ("queue_depth", "default"): 0,
        ("slots", "busy"): 1,
        ("slots", "idle"): 0,
        ("queue_slots", "busy", "default"): 1,
        ("queue_slots", "default", "idle"): 0,
        ("study_stalled", "fault"): 0,
        ("processes_ended_total", "died"): 1,
    }
    some = (
        ("slot_seconds_total", "fault", "lost"),
        ("start_latency_seconds_count", "fault"),
        ("renewals_total", "main"),
    )
    found: dict[tuple[str, ...], float] = {}

    def are_there() -> bool:
        found.update(scrape(fleet, "orchestrator-0.log"))
        return expected.items() <= found.items() and all(found.get(name, 0) > 0 for name in some)

    try:
        wait_until(are_there, "all is counted")
    finally:
        print({name: found.get(name) for name in (*expected, *some)})
    worker = {
        ("worker_pool_processes_ended_total",): 1,
        ("worker_slots", "busy"): 1,
        ("worker_redis_up",): 1,
        ("worker_draining",): 0,
    }
    wait_until(lambda: worker.items() <= scrape(fleet, "worker-0.log").items(), "the worker's, too")


def test_a_trial_whose_process_orchestrator_and_host_are_killed_is_counted_and_explained(fleet):
    fleet.order("kill", step=8)
    fleet.order("stay until go", attempt=2, step=10)
    fleet.submit(1)
    with following(fleet) as followed:
        fleet.serve(FLEET_METRICS_PORT="0")
        worker = fleet.worker(FLEET_METRICS_PORT="0")
        second = fleet.await_note("stay until go", attempt=2)
        await_counts_of_one_kill(fleet)
        fleet.orchestrators[0].kill()
        fleet.orchestrators[0].wait()
        signal_all(tree_of(worker.pid), signal.SIGKILL)
        wait_until(lambda: worker.poll() is not None, "the worker is gone")
        fleet.serve()
        fleet.go()
        fleet.worker()
        fleet.await_over()
    first = fleet.await_note("kill")
    third = fleet.await_note("starts", attempt=3)

    life = json.loads(say(fleet, "explain", "fault", 0, "--json"))
    assert life["state"] == "COMPLETE"
    assert [each["pid"] for each in life["attempts"]] == [first.pid, second.pid, third.pid]
    assert {each["host"] for each in life["attempts"]} == {hostname()}
    assert [each["from_step"] for each in life["attempts"]] == [None, 6, third.step]
    assert life["attempts"][2]["first_step_seconds"] is not None
    assert life["attempts"][0]["cause"] == "died"
    # the new worker finds the dead process, or the orchestrator sees its lease run out, if first
    assert life["attempts"][1]["cause"] in {"died", "lease_lost"}
    assert [each["ended_as"] for each in life["attempts"]] == ["QUEUED", "QUEUED", "COMPLETE"]

    cost = life["cost"]
    assert cost["useful_seconds"] > 0
    assert cost["lost_seconds"] > 0, "steps were made twice"
    assert cost["queued_seconds"] > 0
    on_slots = sum(cost[f"{use}_seconds"] for use in ("useful", "warming", "lost"))
    assert on_slots == pytest.approx(life["held_seconds"])

    told = say(fleet, "explain", "fault", 0)
    assert "\ncost: " in told
    assert f"process {first.pid} on {hostname()} died" in told
    assert f"in process {second.pid} on CPU slot 0, from the checkpoint of step 6" in told
    assert "COMPLETE" in told.splitlines()[0]
    assert "after 3 attempts" in told.splitlines()[0]

    path = events_file(fleet.settings.home, "fault")
    wait_until(lambda: followed[-1]["id"] in path.read_text(), "the last is filed")
    ids = [json.loads(line)["id"] for line in path.read_text().splitlines()]
    assert len(set(ids)) == len(ids), "none is doubled"
    assert [event["id"] for event in followed] == ids, "who followed saw each, once"
    kinds = [
        event["kind"] for event in followed if event["kind"] in {"claimed", "requeued", "ended"}
    ]
    assert kinds == ["claimed", "requeued"] * 2 + ["claimed", "ended"]

    died = [
        json.loads(line) for line in say(fleet, "events", "--json", "--kind", "died").splitlines()
    ]
    assert first.pid in [int(event["process"].split(":")[-2]) for event in died]
    assert say(fleet, "events", "fault", "--trial", 0, "--kind", "requeued").count("requeued") == 2
    assert "no such event" in say(fleet, "events", "fault", "--since", "2100-01-01")
