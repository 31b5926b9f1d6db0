"""What people ask of a study whose target, patience or budget has ended it, on a real Redis."""

from __future__ import annotations

import pytest
from hand_fleet import Fleet, turn_until
from waiting import wait_until

from orchestrator.commands.control import _tell
from orchestrator.driving.service import Service
from orchestrator.local import run as local_run
from orchestrator.status_building import stored_status
from orchestrator.submission import preflight
from orchestrator.submission.overrides import extension_fields
from orchestrator.views.ways_on import ways_on
from workers.coordination.clock import server_time_ms
from workers.protocol.errors import InvalidInputError
from workers.protocol.messages import Result
from workers.protocol.spec import StudySpec
from workers.protocol.states import TrialState


@pytest.fixture
def fleet(client, settings, tmp_path):
    return Fleet(client, settings, tmp_path)


def states(fleet):
    return [trial.user_attrs.get("trialfleet:state") for trial in fleet.stored()]


def work_off(fleet, service, value=0.5, state=TrialState.COMPLETE):
    """End all trials of the study, each as it comes."""

    def is_over():
        for number in fleet.leases.queued():
            fleet.commit(number, value if state is TrialState.COMPLETE else None, state)
        status = service.status("s")
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


def use_up_time(fleet, service):
    """Have an hour be over at once."""
    service._roster.drivers["s"].study.clock._seconds_before += 3600.0
    fleet.commit(0, 0.5)


def use_up_slot_hours(fleet, _service):
    """Hold a slot until the server's clock shows it."""
    grant = fleet.claim(0)
    begun = server_time_ms(fleet.client)
    wait_until(lambda: server_time_ms(fleet.client) > begun + 1, "the slot was held")
    fleet.leases.commit(0, grant.token, TrialState.COMPLETE, Result(values=[0.5]))


@pytest.mark.parametrize(
    ("limit", "use_up", "too_little", "more"),
    [
        ({"timeout": 3600.0}, use_up_time, {"timeout": 3600.1}, {"timeout": "2h"}),
        (
            {"budget": {"slot_hours": 1e-7}},
            use_up_slot_hours,
            {"budget": {"slot_hours": 1.1e-7}},
            {"budget": {"slot_hours": 5.0}},
        ),
    ],
)
def test_without_budget_nothing_is_ordered_until_there_is_more_and_nothing_is_lost(
    fleet, limit, use_up, too_little, more
):
    setting = "timeout" if "timeout" in limit else "budget.slot_hours"
    handle = fleet.submit(trials=9, **limit)
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "it has begun")
        handle.enqueue({"x": 0.3})
        use_up(fleet, service)
        turn_until(service, lambda: handle.status().is_over, "its budget is used up")
    count = len(fleet.stored())
    for ask in (lambda: handle.enqueue({"x": 0.7}), lambda: handle.retry(count - 1)):
        with pytest.raises(InvalidInputError, match=f"{setting} is used up.*--set {setting}="):
            ask()
    with pytest.raises(InvalidInputError, match=f"--set {setting}="):
        handle.extend(trials=20)
    with pytest.raises(InvalidInputError, match=f"no further trial .*--set {setting}="):
        handle.extend(**too_little)
    assert handle.spec().timeout == limit.get("timeout")
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


class Said:
    """In the place of a terminal: keeps what is said."""

    def __init__(self):
        self.text = ""

    def say(self, text):
        self.text += f"{text}\n"

    def update(self, status):
        pass

    def measure(self, history):
        pass


def cancelled_in_the_midst(fleet, service):
    turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are ready")
    grants = {number: fleet.claim(number) for number in range(3)}
    fleet.handle.cancel()
    for number, grant in grants.items():
        fleet.leases.commit(number, grant.token, TrialState.CANCELLED, Result(busy_seconds=1.0))
    turn_until(service, lambda: fleet.handle.status().is_over, "it is over")


def gone_through(fleet, service):
    work_off(fleet, service)


GRID = {"space": {"n": {"type": "int", "low": 0, "high": 2}}, "sampler": {"type": "grid"}}


def fail_all(fleet, service):
    def is_over():
        for number in fleet.leases.queued():
            told = Result(error="KeyError: 'lr'", traceback="KeyError: 'lr'\n")
            fleet.leases.commit(number, fleet.claim(number).token, TrialState.FAILED, told)
        return service.is_done("s")

    turn_until(service, fleet.leases.queued, "it has begun")
    turn_until(service, is_over, "all have failed")


def out_of_time(fleet, service):
    turn_until(service, fleet.leases.queued, "it has begun")
    use_up_time(fleet, service)
    turn_until(service, lambda: service.status("s").is_over, "its time is up")


def out_of_slot_hours(fleet, service):
    turn_until(service, fleet.leases.queued, "it has begun")
    use_up_slot_hours(fleet, service)
    turn_until(service, lambda: service.status("s").is_over, "its budget is used up")


#: The study, how it comes to its end, what `run` says of that, and with what it runs on; None: it
#: goes on as it is.
LEFT = {
    "a target": ({"stop": {"target": 0.2}}, end_at_target, "set stop.target=", {"stop": None}),
    "a grid": ({**GRID, "trials": 50}, gone_through, "no further point", None),
    "all its trials": ({"trials": 2}, gone_through, "STUDY --trials 4", {"trials": 4}),
    "time": ({"timeout": 3600.0}, out_of_time, "--set timeout=72", {"timeout": 9000.0}),
    "slot-hours": (
        {"budget": {"slot_hours": 1e-7}},
        out_of_slot_hours,
        "run STUDY --set budget.slot_hours=",
        {"budget": {"slot_hours": 5.0}},
    ),
    "cancelled, all begun": ({"trials": 3}, cancelled_in_the_midst, "is cancelled", {"trials": 4}),
    "cancelled, more to come": ({"trials": 9}, cancelled_in_the_midst, None, {}),
}


@pytest.fixture
def start_nothing(monkeypatch):
    """What `run` would start says so instead."""
    monkeypatch.setattr(preflight, "_import_elsewhere", lambda *_: {"problem": None})

    def start(*_):
        raise BeginsError

    monkeypatch.setattr(local_run, "LocalWorker", start)


@pytest.mark.parametrize("end", LEFT)
@pytest.mark.usefixtures("start_nothing")
def test_run_says_of_a_study_that_is_over_what_can_be_done_and_starts_nothing(fleet, end):
    fields, come_to_it, told, onward = LEFT[end]
    fleet.handle = fleet.submit(**{"trials": 50, **fields})
    with fleet.service() as service:
        come_to_it(fleet, service)
    view = Said()

    def run(**changes):
        spec = StudySpec(**{**fleet.spec.model_dump(exclude_none=True), **changes})
        return local_run.run(spec, fleet.settings.home, fleet.settings, view)

    if told is not None:
        assert run().is_over
        assert told in view.text
        assert "best s" in view.text
    if onward is not None:
        with pytest.raises(BeginsError):
            run(**{name: value or {} for name, value in onward.items()})
    if told is None:
        assert "was cancelled, and goes on by this" in view.text


@pytest.mark.usefixtures("start_nothing")
def test_what_failed_to_its_last_trial_is_retried_as_it_is_said_to_be(fleet):
    handle = fleet.submit(trials=3, stop={"equal_failures": 3})
    with fleet.service() as service:
        fail_all(fleet, service)
    told = ways_on(handle.status(), "trialfleet extend s")
    assert told.endswith("`trialfleet resume s` and `trialfleet retry s`")
    view = Said()
    assert local_run.run(fleet.spec, fleet.settings.home, fleet.settings, view).is_over
    assert "`trialfleet retry s` and `trialfleet run STUDY`" in view.text
    handle.resume()
    assert handle.retry() == 3
    with pytest.raises(BeginsError):  # what is ordered waits in Redis alone
        local_run.run(fleet.spec, fleet.settings.home, fleet.settings, view)
    with fleet.service() as service:
        work_off(fleet, service)
    assert states(fleet) == ["FAILED"] * 3 + ["COMPLETE"] * 3


@pytest.mark.usefixtures("start_nothing")
def test_what_is_enqueued_in_a_study_that_is_over_is_run(fleet):
    handle = fleet.submit(trials=2)
    with fleet.service() as service:
        work_off(fleet, service)
    assert local_run.run(fleet.spec, fleet.settings.home, fleet.settings, Said()).is_over
    handle.enqueue({"x": 0.3})
    with pytest.raises(BeginsError):
        local_run.run(fleet.spec, fleet.settings.home, fleet.settings, Said())


def test_what_ended_a_study_is_no_more_said_of_one_that_was_changed(fleet, capsys):
    """No orchestrator looks at the study meanwhile."""
    handle = fleet.submit(trials=50, stop={"target": 0.2})
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "they are in flight")
        fleet.claim(0)
        fleet.commit(1, 0.1)
        turn_until(service, lambda: handle.status().limit == "stop.target", "it is reached")
        assert not handle.status().is_over, "trial 0 runs"
        handle.extend(stop={"target": 0.05})
        _tell(handle.status(), as_json=False)
        assert "no further trial begins" not in capsys.readouterr().out
        assert handle.extend(trials=80).trials == 80


def test_a_grid_that_became_wider_is_not_exhausted_before_anybody_has_looked(fleet):
    grid = {"n": {"type": "int", "low": 0, "high": 1}}
    handle = fleet.submit(trials=50, space=grid, sampler={"type": "grid"})
    with fleet.service() as service:
        work_off(fleet, service)
    assert handle.status().is_exhausted
    handle.extend(space={"n": {"type": "int", "low": 0, "high": 4}})
    assert not handle.status().is_exhausted
    assert handle.extend(trials=80).trials == 80


def test_a_grid_at_rest_is_to_run_as_many_trials_as_it_has_points(fleet):
    grid = {"n": {"type": "int", "low": 0, "high": 8}}
    fleet.submit(trials=50, space=grid, sampler={"type": "grid"})
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "it has begun")
        live = service.status("s").wanted
    at_rest = stored_status("s", fleet.settings)
    assert (live, at_rest.wanted, at_rest.is_over) == (9, 9, False)


class BeginsError(Exception):
    """Something is started."""
