"""Budgets and stops, against a real Redis, with the test in the part of the workers."""

from __future__ import annotations

import pytest
from hand_fleet import Fleet, turn_until

from orchestrator.driving.service import Service
from orchestrator.submission.submit import submit
from orchestrator.views.watch import summary
from workers.protocol.messages import Result
from workers.protocol.states import Charge, TrialState

HOUR = 3600.0
BOOM = "Traceback (most recent call last):\n  File \"train.py\", line 3, in f\nKeyError: 'lr'\n"


@pytest.fixture
def fleet(client, settings, tmp_path):
    return Fleet(client, settings, tmp_path)


def fail(fleet, number, traceback=BOOM, **fields):
    error = Result(error="KeyError: 'lr'", traceback=traceback, **fields)
    fleet.leases.commit(number, fleet.claim(number).token, TrialState.FAILED, error)


def work(fleet, service, end, what="it is over"):
    """End each trial that waits, until the study is over."""

    def is_over():
        for number in sorted(fleet.leases.queued()):
            end(number)
        return service.status("s").is_over

    turn_until(service, is_over, what)
    return service.status("s")


def states(fleet):
    return [trial.user_attrs["trialfleet:state"] for trial in fleet.stored()]


@pytest.mark.parametrize("unit", ["slot_hours", "gpu_hours"])
def test_hours_of_slots_are_counted_over_attempts_and_over_killed_orchestrators(fleet, unit):
    device = "box/GPU-1" if unit == "gpu_hours" else "box/7/cpu-0"
    allowed = 0.6 / HOUR
    fleet.submit(trials=1000, budget={unit: allowed})

    def hold(number):
        """An attempt that is given back, and one that is committed."""
        grant = fleet.leases.claim(number, "hand", 45.0, device=device)
        fleet.leases.release(number, grant.token)
        fleet.leases.claim(number, "hand", 45.0, device=device)

    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        for number in (0, 1):
            hold(number)
        turn_until(
            service, lambda: service.status("s").budgets[unit].used > allowed / 4, "it is counted"
        )
        service._roster.abandon("s")  # as a kill leaves it: nothing is written at the end
    with fleet.service() as service:
        turn_until(service, lambda: service.status("s").trials["cancelled"] == 1, "it is used up")
        status = service.status("s")
        assert status.state == "running", "those that run end normally"
        assert status.budgets[unit].used >= status.budgets[unit].allowed == allowed
        for number in (0, 1):
            token = fleet.leases.record(number).token
            fleet.leases.commit(number, token, TrialState.COMPLETE, Result(values=[0.5]))
        turn_until(service, lambda: service.status("s").is_over, "they have ended")
    assert states(fleet) == ["COMPLETE", "COMPLETE", "CANCELLED"]
    assert "hours were used up before it began" in fleet.stored()[2].user_attrs["trialfleet:error"]
    name = "trialfleet:gpu_seconds" if unit == "gpu_hours" else "trialfleet:slot_seconds"
    held = sum(trial.user_attrs.get(name, 0.0) for trial in fleet.stored())
    assert fleet.statuses[-1].budgets[unit].used == pytest.approx(held / HOUR, abs=2e-6)


def test_slots_without_a_gpu_use_no_gpu_hours_up(fleet):
    fleet.submit(trials=3, budget={"gpu_hours": 1e-9})
    with fleet.service() as service:
        status = work(fleet, service, lambda number: fleet.commit(number, 0.5))
    assert (status.trials["complete"], status.ended_by) == (3, None)


@pytest.mark.parametrize(
    ("stop", "values", "reason"),
    [
        ({"target": 0.2}, [0.9, 0.5, 0.1, 0.8], "trial 2 reached the study's target"),
        ({"patience": 3}, [0.5, 0.4, 0.9, 0.8, 0.7], "no trial was better in the last 3"),
        ({"patience": 2, "min_delta": 0.2}, [0.5, 0.4, 0.35], "no trial was better in the last 2"),
    ],
)
def test_a_study_stops_at_its_target_or_when_it_gets_no_better(fleet, stop, values, reason):
    fleet.submit(trials=1000, stop=stop)
    with fleet.service() as service:
        for number, value in enumerate(values):
            turn_until(service, lambda: fleet.leases.queued().get(number), "it is there")  # noqa: B023
            fleet.commit(number, value)
            turn_until(service, lambda: service.status("s").num_ended > number, "told")  # noqa: B023
            if service.status("s").ended_by:
                break
        turn_until(service, lambda: service.status("s").is_over, "it is over")
    status = fleet.statuses[-1]
    assert reason in status.ended_by
    assert status.state == "finished"
    complete = [state for state in states(fleet) if state == "COMPLETE"]
    assert len(complete) == len(values) - (1 if "target" in stop else 0)
    assert set(states(fleet)[len(complete) :]) <= {"CANCELLED"}
    # what was stopped for a target goes on for a better one
    submit(fleet.spec.model_copy(update={"stop": type(fleet.spec.stop)()}), fleet.settings)
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "it goes on")
        turn_until(service, lambda: service.status("s").ended_by is None, "nothing ends it")


def test_equal_failures_in_a_row_stop_a_study_until_it_is_handed_in_again(fleet):
    handle = fleet.submit(trials=1000, stop={"equal_failures": 3})
    others = iter(["KeyError: 1\n", "ValueError: 1\n"])

    def end(number):
        if number == 2:  # lost with its host, again and again: no fault of the objective
            lost = Result(error="gone")
            fleet.leases.fail(number, fleet.claim(number).token, lost, 1, 0.0, Charge.LOSS)
        else:
            fail(fleet, number, next(others, BOOM))

    with fleet.service() as service:
        status = work(fleet, service, end)
        assert status.state == "failed"
        assert "trials in a row failed with the same traceback" in status.ended_by
        assert status.traceback == BOOM
    count = len(fleet.stored())
    assert handle.status().traceback == BOOM
    with Service(fleet.settings) as service:  # nobody asked it to go on
        for _ in range(5):
            service.turn()
        assert len(fleet.stored()) == count

    submit(fleet.spec, fleet.settings)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) >= 3, "it goes on")
        assert handle.status().traceback is None
        first = min(fleet.leases.queued())
        for number in range(first, first + 2):
            fail(fleet, number)
            turn_until(
                service, lambda: not service._roster.drivers["s"].study.limits.reason, "two are few"
            )
        service._roster.abandon("s")  # as a kill leaves it
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "they are there again")
        fail(fleet, min(fleet.leases.queued()))
        turn_until(service, lambda: service.status("s").is_over, "that was the third in a row")
    assert fleet.statuses[-1].traceback == BOOM
    assert states(fleet)[count:] == ["FAILED"] * 3 + ["CANCELLED"] * (
        len(states(fleet)) - count - 3
    )


def test_what_ended_a_study_is_known_without_a_fleet_too(fleet):
    handle = fleet.submit(trials=1000, stop={"equal_failures": 2})
    with fleet.service() as service:
        work(fleet, service, lambda number: fail(fleet, number))
    fleet.client.flushall()
    status = handle.status()
    assert (status.state, status.traceback) == ("failed", BOOM)
    text = "\n".join(str(each) for each in summary(status).renderables)
    assert "trials in a row failed with the same traceback" in text
    assert "KeyError: 'lr'" in text
    with Service(fleet.settings) as service:
        service.turn()
        assert service.status("s") is None, "it is over, and not taken up again"
