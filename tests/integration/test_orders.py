"""Trials that people order: with given parameters, and failed ones again, on a real Redis."""

from __future__ import annotations

import json

import optuna
import pytest
from hand_fleet import Fleet, look_around, turn_until

from orchestrator.driving.collector import Collector
from orchestrator.driving.dispatch import Dispatcher
from orchestrator.driving.driven import DrivenStudy
from orchestrator.driving.service import Service
from orchestrator.handle import StudyHandle
from workers.coordination.studies import Studies
from workers.coordination.study_facts import StudyFacts
from workers.coordination.study_orders import MAX_ORDERS, StudyOrders
from workers.protocol.errors import InvalidInputError, StorageFullError
from workers.protocol.messages import Result
from workers.protocol.states import TrialState

SPACE = {
    "x": {"type": "float", "low": 0.0, "high": 1.0},
    "n": {"type": "int", "low": 2, "high": 8, "step": 2},
    "c": {"type": "categorical", "choices": ["a", 1, True, None]},
    "deep": {"type": "int", "low": 1, "high": 3, "when": {"n": [8]}},
}


@pytest.fixture
def fleet(client, settings, tmp_path):
    return Fleet(client, settings, tmp_path)


def work_off(fleet, service, state=TrialState.COMPLETE):
    """End all trials of the study, each as it comes."""

    def is_over():
        for number in fleet.leases.queued():
            fleet.commit(number, 0.5 if state is TrialState.COMPLETE else None, state)
        status = service.status("s")
        return status is None or status.is_over

    turn_until(service, is_over, "it is over")


def test_given_parameters_are_run_on_top_of_a_studys_trials_each_once(fleet):
    handle = fleet.submit(trials=3, space=SPACE)
    given = {"x": 0.25, "n": 8, "c": True, "deep": 2}
    assert handle.enqueue(given, {"x": 0.75}) == 2
    assert handle.enqueue(given) == 0, "it waits already"
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "they are in flight")
        assert handle.enqueue({"x": 0.75}) == 0, "it has become a trial"
        look_around(service)
        assert handle.status().wanted == 5, "each was taken in once"
        first, second = fleet.stored()[:2]
        assert {**first.params, "c": None} == {"x": 0.25, "n": 8, "c": None, "deep": 2}
        assert fleet.leases.record(0).params["c"] is True
        assert second.params["x"] == 0.75
        work_off(fleet, service)
    status = handle.status()
    assert (status.num_ended, status.wanted, status.given) == (5, 5, 2)


def test_a_study_that_is_over_goes_on_for_what_is_ordered(fleet, monkeypatch):
    handle = fleet.submit(trials=1)
    with Service(fleet.settings) as service:
        turn_until(service, fleet.leases.queued, "it is in flight")
        fleet.commit(0, 0.5)
        turn_until(service, lambda: handle.status().is_over, "it is over")
        assert handle.enqueue({"x": 0.25}) == 1
        assert handle.status().state == "running"
        turn_until(service, fleet.leases.queued, "it is in flight")
        fleet.commit(1, 0.7)
        turn_until(service, lambda: handle.status().is_over, "it is over again")
        order, publish = {"x": 0.5}, StudyFacts.publish_end

        def publish_late(self, name, facts, over, revision):
            if over is not None:  # an order comes when the end is being published
                handle.enqueue(order)
            return publish(self, name, facts, over, revision)

        monkeypatch.setattr(StudyFacts, "publish_end", publish_late)
        handle.enqueue({"x": 0.75})
        turn_until(service, lambda: fleet.leases.is_queued(2), "it is in flight")
        fleet.commit(2, 0.7)
        turn_until(service, lambda: fleet.leases.is_queued(3), "so is what came at the last moment")
    assert [trial.params["x"] for trial in fleet.stored()][1] == 0.25


def test_what_is_ordered_runs_in_a_study_that_was_handed_in_again_with_fewer_trials(fleet):
    """What it had too many was held against them: they waited, and the study never ended."""
    fleet.submit(trials=3)
    with fleet.service() as service:
        work_off(fleet, service)
    handle = fleet.submit(trials=1)
    handle.enqueue({"x": 0.25}, {"x": 0.75})
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 2, "they are in flight")
        assert handle.status().wanted == 5
        work_off(fleet, service)
    assert [trial.params["x"] for trial in fleet.stored()][3:] == [0.25, 0.75]
    status = handle.status()
    assert (status.state, status.num_ended, status.wanted) == ("finished", 5, 5)


def test_an_order_that_a_full_disk_did_not_take_is_carried_out_later(fleet, monkeypatch):
    handle = fleet.submit(trials=1)
    handle.enqueue({"x": 0.25})
    enqueue, refused = optuna.Study.enqueue_trial, []

    def refuse_once(study, *arguments, **options):
        if not refused:
            refused.append(study.study_name)
            raise StorageFullError("no space left on device")
        enqueue(study, *arguments, **options)

    monkeypatch.setattr(optuna.Study, "enqueue_trial", refuse_once)
    with fleet.service() as service:
        turn_until(service, lambda: refused, "it is refused")
        turn_until(service, lambda: not Studies(fleet.client).orders.waiting("s"), "it is taken")
        work_off(fleet, service)
    assert refused == ["s"]
    assert 0.25 in [trial.params["x"] for trial in fleet.stored()]


def test_an_order_is_carried_out_once_though_the_orchestrator_dies_before_it_is_dropped(
    fleet, monkeypatch
):
    handle = fleet.submit(trials=1)
    handle.enqueue({"x": 0.25}, {"x": 0.5})
    with fleet.service() as service, monkeypatch.context() as patch:
        patch.setattr(StudyOrders, "drop", lambda *_: None)
        turn_until(service, lambda: service.status("s") is not None, "it is driven")
        assert len(fleet.stored()) >= 2, "they are in the storage"
        assert len(Studies(fleet.client).orders.waiting("s")) == 2
    with fleet.service() as service:
        turn_until(
            service, lambda: not Studies(fleet.client).orders.waiting("s"), "they are dropped"
        )
        work_off(fleet, service)
    assert [trial.params["x"] for trial in fleet.stored()][:2] == [0.25, 0.5]
    assert len(fleet.stored()) == 3


@pytest.mark.parametrize("sampler", ["grid", "bruteforce"])
def test_an_exhausted_sampler_does_not_keep_given_parameters_from_running(fleet, sampler):
    space = {"n": {"type": "int", "low": 0, "high": 1}, "c": SPACE["c"]}
    handle = fleet.submit(trials=50, sampler={"type": sampler, "seed": 1}, space=space)
    with fleet.service() as service:
        work_off(fleet, service)
        points = len(fleet.stored())
        assert points == 8
        handle.enqueue({"n": 1, "c": None})
        turn_until(service, lambda: not service.status("s").is_over, "it goes on")
        work_off(fleet, service)
    assert len(fleet.stored()) == 9
    assert handle.status().state == "finished"


@pytest.mark.parametrize("wish", ["stop", "cancel"])
def test_what_is_ordered_and_has_not_begun_ends_with_the_study(fleet, wish):
    handle = fleet.submit(trials=1)
    handle.enqueue(*({"x": each / 10} for each in range(9)))
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        running = fleet.claim(0)
        getattr(handle, wish)()
        with pytest.raises(InvalidInputError, match="trialfleet resume s"):
            handle.enqueue({"x": 0.95})
        fleet.leases.commit(0, running.token, TrialState.COMPLETE, Result(values=[0.5]))
        turn_until(service, lambda: service.status("s").is_over, "it is over")
    status = handle.status()
    assert status.given == 9, "each order has become a trial, if a cancelled one"
    assert status.trials["complete"] == 1
    assert status.trials["cancelled"] == len(fleet.stored()) - 1


def test_many_that_wait_are_cancelled_with_one_write_and_one_sync(fleet, monkeypatch):
    handle = fleet.submit(trials=1)
    handle.enqueue(*({"x": each / 100} for each in range(60)))
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        synced, withdraw = [], Dispatcher.withdraw

        def counted(dispatcher, reason, **options):
            sync = DrivenStudy.sync
            with monkeypatch.context() as patch:
                patch.setattr(DrivenStudy, "sync", lambda it: (synced.append(it), sync(it)))
                withdraw(dispatcher, reason, **options)

        monkeypatch.setattr(Dispatcher, "withdraw", counted)
        handle.cancel()
        turn_until(service, lambda: service.status("s").is_over, "it is over")
    assert handle.status().trials["cancelled"] >= 60
    assert len(synced) == 1


def test_what_was_withdrawn_and_not_told_when_its_orchestrator_died_is_cancelled_and_no_failure(
    fleet, monkeypatch
):
    handle = fleet.submit(trials=3)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        with monkeypatch.context() as patch:
            patch.setattr(Collector, "tell_cancelled", lambda *_: None)
            handle.cancel()
            turn_until(service, lambda: not fleet.leases.queued(), "they are withdrawn")
    assert not any(trial.state.is_finished() for trial in fleet.stored()), "as one that was killed"
    with fleet.service() as service:
        turn_until(service, lambda: service.status("s").is_over, "it is over")
    assert handle.status().trials["cancelled"] == 3
    assert handle.status().trials["failed"] == 0
    assert "before it began" in fleet.stored()[0].user_attrs["trialfleet:error"]
    assert handle.resume().state == "running"
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "they are run after all")


def test_a_failed_trial_is_retried_once_with_its_parameters_and_its_number(fleet):
    handle = fleet.submit(trials=4, max_failures=1)
    with Service(fleet.settings) as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        fleet.commit(0, None, TrialState.FAILED)
        fleet.leases.fail(1, fleet.claim(1).token, Result(error="boom"), 1, 0.0)
        fleet.commit(2, 0.5)
        turn_until(service, lambda: fleet.leases.is_queued(3), "the last")
        fleet.commit(3, None, TrialState.CANCELLED)
        turn_until(service, lambda: handle.status().is_over, "it is over")
        assert handle.retry() == 2
        turn_until(service, lambda: len(fleet.leases.queued()) == 2, "they are in flight")
        assert handle.retry() == 0
        fleet.commit(4, 0.5)
        fleet.commit(5, None, TrialState.FAILED)
        turn_until(service, lambda: handle.status().is_over, "it is over")
        assert handle.retry(3) == 1, "a cancelled one, by its number"
        assert handle.retry(0, 1) == 0
        assert handle.retry() == 1, "the retry that failed, too"
        turn_until(service, lambda: len(fleet.leases.queued()) == 2, "they are in flight")
    trials = fleet.stored()
    retries = {each.number: each.user_attrs.get("trialfleet:retries") for each in trials}
    assert [retries[number] for number in range(6)] == [None, None, None, None, 0, 1]
    assert {retries[6], retries[7]} == {3, 5}, "asked for within a moment"
    for number, retried in list(retries.items())[4:]:
        assert trials[number].params == trials[retried].params


def test_what_cannot_be_retried_is_refused_by_its_state(fleet):
    handle = fleet.submit(trials=2)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 2, "they are in flight")
        fleet.commit(0, 0.5)
        turn_until(service, lambda: handle.status().num_ended == 1, "it is told")
        for number, state in ((0, "complete"), (1, "not over"), (7, "not there"), (-1, "not")):
            with pytest.raises(InvalidInputError, match=f"trial {number} .* is {state}"):
                handle.retry(number)
        look_around(service)
    assert len(fleet.stored()) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": 1.0}, "'lr'.*no such parameter.*it has x, n, c, deep"),
        ({"dep": 1}, "did you mean 'deep'"),
        ({"x": 1.5}, r"'x' = 1\.5: it is not within 0\.0 and 1\.0"),
        ({"x": "0.5"}, "'x' = '0.5': it is no finite number"),
        ({"x": True}, "no finite number"),
        ({"x": float("nan")}, "no finite number"),
        ({"n": 3}, "'n' = 3: it is not reached from 2 and steps of 2"),
        ({"n": 4.5}, "not reached"),
        ({"c": "b"}, "is none of"),
        ({"c": 0}, "is none of"),
        ({"n": 4, "deep": 2}, "'deep' = 2.*only when n is 8, and n = 4 is given; leave it out"),
    ],
)
def test_parameters_that_the_space_does_not_hold_are_refused_and_none_is_enqueued(
    fleet, given, message
):
    handle = fleet.submit(space=SPACE)
    with pytest.raises(InvalidInputError, match=message):
        handle.enqueue({"x": 0.5}, given)
    assert Studies(fleet.client).orders.waiting("s") == {}


def test_more_orders_than_fit_are_refused_as_a_whole(fleet):
    handle = fleet.submit()
    with pytest.raises(InvalidInputError, match=f"{MAX_ORDERS} are the most"):
        handle.enqueue(*({"x": each / 1e5} for each in range(MAX_ORDERS + 1)))
    assert Studies(fleet.client).orders.waiting("s") == {}


def test_what_optunas_own_enqueue_left_in_a_database_is_run_or_failed_and_stalls_nothing(
    fleet, tmp_path
):
    fleet.settings = fleet.settings.model_copy(update={"storage": f"sqlite:///{tmp_path}/o.db"})
    handle = fleet.submit(trials=2, space=SPACE)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 2, "they are in flight")
        theirs = optuna.load_study(study_name="s", storage=fleet.settings.storage)
        theirs.enqueue_trial({"x": 0.125})
        theirs.enqueue_trial({"c": "none of them"})
        work_off(fleet, service)
    with fleet.service() as service:
        turn_until(service, lambda: service.status("s"), "it is open")
        work_off(fleet, service)
    assert handle.status().stalled is None
    found = {json.dumps(each.system_attrs.get("fixed_params")): each for each in fleet.stored()}
    assert found['{"x": 0.125}'].state.name == "COMPLETE"
    failed = found['{"c": "none of them"}']
    assert "given parameters" in failed.user_attrs["trialfleet:error"]


def test_the_best_of_another_study_are_given_to_this_one(fleet, settings):
    handle = fleet.submit(trials=2, direction="maximize", space=SPACE)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 2, "they are in flight")
        fleet.commit(0, 0.1)
        fleet.commit(1, 0.9)
        turn_until(service, lambda: service.status("s").is_over, "it is over")
    best = handle.best_params(1)
    assert best[0]["x"] == fleet.stored()[1].params["x"]
    assert best[0]["c"] in SPACE["c"]["choices"], "as people name it"
    other = fleet.submit(name="other", space=SPACE)
    assert other.enqueue(*best) == 1


def test_a_study_that_no_fleet_has_takes_orders_for_the_next_run_and_nothing_else(fleet):
    fleet.submit(trials=2)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 2, "they are in flight")
        fleet.commit(0, None, TrialState.FAILED)
        fleet.commit(1, 0.5)
        turn_until(service, lambda: service.status("s").is_over, "it is over")
    alone = fleet.settings.model_copy(update={"redis_url": None})
    handle = StudyHandle("s", alone)
    assert handle.enqueue({"x": 0.25}) == 1
    assert handle.enqueue({"x": 0.25}) == 0
    assert handle.retry() == 1
    assert handle.retry() == 0
    with pytest.raises(InvalidInputError, match="within"):
        handle.enqueue({"x": 2.0})
    for ask in (handle.pause, handle.resume, handle.cancel, lambda: handle.extend(trials=9)):
        with pytest.raises(InvalidInputError, match="no fleet runs here; `trialfleet run`"):
            ask()
    assert handle.status().trials["queued"] == 2
    fleet.submit(trials=2)
    with fleet.service() as service:
        turn_until(service, lambda: service.status("s") is not None, "it is driven")
        with pytest.raises(InvalidInputError, match="another"):
            handle.enqueue({"x": 0.75})
        work_off(fleet, service)
    first, second = fleet.stored()[2:]
    assert (first.params["x"], second.user_attrs["trialfleet:retries"]) == (0.25, 0)
