from __future__ import annotations

import time

import pytest

from orchestrator.status_building import build_status
from orchestrator.storage.tally import Tally
from orchestrator.views.obstacles import obstacles
from workers.processes.registry import ProcessEntry
from workers.protocol.spec import StudySpec
from workers.protocol.states import ProcessKind, StudyState

SPEC = StudySpec(
    name="s", objective="m:f", direction="minimize", trials=2, resources={"queue": "big"}
)
STATUS = build_status(SPEC, Tally(SPEC.all_directions))


def entry(kind, **fields):
    identity = ("host", "boot", 1, 2)
    return ProcessEntry(identity=identity, kind=kind, **fields)


DRIVER = entry(ProcessKind.ORCHESTRATOR)
WORKER = entry(ProcessKind.MAIN, queues=["big"], slots=1)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([DRIVER, WORKER], []),
        ([WORKER], ["no orchestrator runs: start `trialfleet serve`"]),
        ([entry(ProcessKind.ORCHESTRATOR, drives="s"), WORKER], []),
        (
            [entry(ProcessKind.ORCHESTRATOR, drives="other"), WORKER],
            ["no orchestrator that drives it runs: start `trialfleet serve`"],
        ),
        ([DRIVER], ["no worker runs: start `celery -A workers worker -Q big`"]),
        ([], ["no orchestrator runs", "no worker runs"]),
        (
            [DRIVER, entry(ProcessKind.MAIN, queues=["default", "small"], slots=1)],
            ["no worker takes trials from queue 'big', and there are workers for default, small"],
        ),
        (
            [DRIVER, entry(ProcessKind.MAIN, queues=["big"], slots=1, is_draining=True)],
            ["all workers that take trials from queue 'big' are draining"],
        ),
    ],
)
def test_what_a_study_waits_for_is_said_with_the_way_out(entries, said):
    found = obstacles(SPEC, STATUS, entries)
    assert len(found) == len(said)
    for text, part in zip(found, said, strict=True):
        assert part in text


def slot(pid, device, **fields):
    identity = ("host", "boot", pid, 2)
    return ProcessEntry(
        identity=identity, kind=ProcessKind.TRIAL, parent=1, device=device, **fields
    )


def test_workers_that_refuse_a_study_say_why_and_whether_others_take_it():
    two = entry(ProcessKind.MAIN, queues=["big"], slots=2)
    refusing = slot(3, "host/0", refuses={"s": "it is not signed", "t": "nor is this"})
    both = [DRIVER, two, refusing, slot(4, "host/1", refuses={"s": "it is not signed"})]
    assert obstacles(SPEC, STATUS, both) == ["no worker takes its trials (host): it is not signed"]
    (text,) = obstacles(SPEC, STATUS, [DRIVER, two, refusing, slot(4, "host/1")])
    assert text == "its trials are left to others (host): it is not signed"
    # as two workers without a GPU have it
    (text,) = obstacles(SPEC, STATUS, [DRIVER, two, refusing, slot(4, "host/0")])
    assert text == "its trials are left to others (host): it is not signed"


def test_how_old_a_status_is_shows_when_nobody_drives_the_study():
    (text,) = obstacles(SPEC, STATUS.model_copy(update={"as_of": 1e9}), [WORKER])
    assert "as of 2001-09-0" in text


@pytest.mark.parametrize(
    ("age", "fields", "is_said"),
    [
        (None, {}, False),
        (170.0, {}, False),  # as thousands of studies that rest have it
        (190.0, {}, True),
        (190.0, {"stalled": "its storage is full"}, False),
        (190.0, {"state": StudyState.FINISHED}, False),
    ],
)
def test_a_status_that_a_live_orchestrator_left_for_long_says_so(age, fields, is_said):
    # whatever the clocks of hosts say: the age is by that of Redis
    shown = STATUS.model_copy(update={"as_of": time.time() - 1e6, **fields})
    found = obstacles(SPEC, shown, [DRIVER, WORKER], shown_seconds=age, lease_seconds=45.0)
    assert [("has not looked at it" in text, "as of" in text) for text in found] == (
        [(True, True)] if is_said else []
    )


def test_a_study_that_is_over_waits_for_nothing():
    assert obstacles(SPEC, STATUS.model_copy(update={"state": StudyState.FINISHED}), []) == []
