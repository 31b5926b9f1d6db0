"""What people ask of a study whose target, patience or budget has ended it, on a real Redis."""

from __future__ import annotations

import pytest
from hand_fleet import Fleet, turn_until

from orchestrator.driving.service import Service
from orchestrator.submission.overrides import extension_fields
from workers.protocol.errors import InvalidInputError
from workers.protocol.states import TrialState


@pytest.fixture
def fleet(client, settings, tmp_path):
    return Fleet(client, settings, tmp_path)


def states(fleet):
    return [trial.user_attrs.get("trialfleet:state") for trial in fleet.stored()]


def work_off(fleet, service, value=0.5, state=TrialState.COMPLETE):
    """End all trials of the study, each as it comes."""
    handle_status = lambda: service.status("s")  # noqa: E731

    def is_over():
        for number in fleet.leases.queued():
            fleet.commit(number, value if state is TrialState.COMPLETE else None, state)
        status = handle_status()
        return status is not None and status.is_over

    turn_until(service, is_over, "it is over")


def end_at_target(fleet, service):
    turn_until(service, lambda: len(fleet.leases.queued()) == 3, "they are in flight")
    fleet.commit(0, None, TrialState.FAILED)
    fleet.commit(1, 0.1)
    turn_until(service, lambda: service.status("s").is_over, "its target is reached")


def test_what_people_give_is_run_though_the_target_is_reached(fleet):
    handle = fleet.submit(trials=50, stop={"target": 0.2})
    with fleet.service() as service:
        end_at_target(fleet, service)
    assert states(fleet) == ["FAILED", "COMPLETE", "CANCELLED"]
    assert handle.enqueue({"x": 0.3}) == 1
    assert handle.retry() == 1
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 2, "they are to be run")
        service._roster.abandon("s")  # as a kill leaves it
    with fleet.service() as service:
        work_off(fleet, service)
    assert states(fleet)[3:] == ["COMPLETE", "COMPLETE"]
    assert fleet.stored()[3].params == {"x": 0.3}
    assert fleet.stored()[4].params == fleet.stored()[0].params
    assert "target" in handle.status().ended_by


def test_more_trials_are_refused_where_the_target_would_end_them_at_once(fleet):
    handle = fleet.submit(trials=50, stop={"target": 0.2})
    with Service(fleet.settings) as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "they are in flight")
        fleet.commit(1, 0.1)
        turn_until(service, lambda: handle.status().trials["cancelled"] == 2, "it is reached")
        turn_until(service, lambda: handle.status().is_over, "it is over")
        for ask in (lambda: handle.extend(trials=80), handle.resume):
            with pytest.raises(InvalidInputError, match=r"target.*extend s --set stop\.target="):
                ask()
        assert handle.status().is_over
        changes, space = extension_fields(handle.spec(), None, ["stop.target=0.05", "trials=80"])
        assert handle.extend(space=space, **changes).stop.target == 0.05
        turn_until(service, lambda: len(fleet.leases.queued()) > 2, "it goes on")
        again = {trial.user_attrs.get("trialfleet:retries") for trial in fleet.stored()}
        assert again >= {0, 2}, "what had not begun is run after all"


@pytest.mark.parametrize(
    ("limit", "more"),
    [
        ({"timeout": 1.0}, {"timeout": "2h"}),
        ({"budget": {"slot_hours": 1e-7}}, {"budget": {"slot_hours": 5.0}}),
    ],
)
def test_without_budget_nothing_is_ordered_until_there_is_more_and_nothing_is_lost(
    fleet, limit, more
):
    setting = "timeout" if "timeout" in limit else "budget.slot_hours"
    handle = fleet.submit(trials=9, **limit)
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "it has begun")
        handle.enqueue({"x": 0.3})
        fleet.commit(0, 0.5)
        turn_until(service, lambda: handle.status().is_over, "its budget is used up")
    count = len(fleet.stored())
    for ask in (lambda: handle.enqueue({"x": 0.7}), lambda: handle.retry(count - 1)):
        with pytest.raises(InvalidInputError, match=f"{setting} is used up.*--set {setting}="):
            ask()
    with pytest.raises(InvalidInputError, match=f"--set {setting}="):
        handle.extend(trials=20)
    handle.extend(**more)
    assert handle.enqueue({"x": 0.7}) == 1
    with fleet.service() as service:
        work_off(fleet, service)
    run = [trial.params["x"] for trial in fleet.stored() if trial.values]
    assert {0.3, 0.7} <= set(run), "what waited when the budget was used up is run, too"
    assert len(run) == 9 + 2


def test_a_grid_that_was_gone_through_says_so_and_what_it_has_left(fleet):
    grid = {"n": {"type": "int", "low": 0, "high": 4}}
    handle = fleet.submit(trials=50, space=grid, sampler={"type": "grid"})
    with Service(fleet.settings) as service:
        turn_until(service, fleet.leases.queued, "it has begun")
        assert handle.status().wanted == 5, "it has no more points"

        def is_over():
            for number in fleet.leases.queued():
                fleet.commit(number, 0.5)
            return handle.status().is_over

        turn_until(service, is_over, "it is over")
        status = handle.status()
        assert (status.num_ended, status.wanted, status.is_exhausted) == (5, 5, True)
        with pytest.raises(InvalidInputError, match="no further point.*enqueue s"):
            handle.extend(trials=80)


def test_a_stopped_grid_that_goes_on_runs_each_of_its_points(fleet):
    grid = {"n": {"type": "int", "low": 0, "high": 4}}
    handle = fleet.submit(trials=50, space=grid, sampler={"type": "grid"})
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are ready")
        handle.stop()
        turn_until(service, lambda: handle.status().is_over, "it is over")
        assert states(fleet) == ["CANCELLED"] * 3
    handle.resume()
    with fleet.service() as service:
        work_off(fleet, service)
    run = sorted(trial.params["n"] for trial in fleet.stored() if trial.values)
    assert run == [0, 1, 2, 3, 4]
