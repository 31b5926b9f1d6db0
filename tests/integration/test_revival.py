"""Which studies an orchestrator of all studies takes up, and how often a grid visits a point."""

from __future__ import annotations

import hashlib

import pytest
from hand_fleet import Fleet, turn_until

from orchestrator.driving import recovery
from orchestrator.driving import service as service_module
from orchestrator.driving.service import Service
from orchestrator.handle import StudyHandle
from orchestrator.submission.submit import hand_in, prepared, submit
from workers.coordination import keys
from workers.coordination.studies import Studies
from workers.protocol.messages import Result
from workers.protocol.states import TrialState


@pytest.fixture
def fleet(client, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(service_module, "_BLOCK_MS", 5)
    return Fleet(client, settings.model_copy(update={"time_scale": 0.02}), tmp_path)


def test_an_orchestrator_that_begins_opens_no_journal_of_what_redis_knows(fleet, monkeypatch):
    fleet.submit(trials=1)
    studies, opened = Studies(fleet.client), []
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "it is in flight")
    open_reader = recovery.open_reader
    monkeypatch.setattr(
        recovery, "open_reader", lambda url: (opened.append(url), open_reader(url))[1]
    )
    assert recovery.resubmit_forgotten(fleet.settings, studies) == []
    assert opened == []
    fleet.client.srem(keys.STUDIES, "s")
    assert recovery.resubmit_forgotten(fleet.settings, studies) == ["s"]
    assert len(opened) == 1


def turn(service, count=20):
    for _ in range(count):
        service.turn()


@pytest.mark.parametrize("has_redis", [True, False], ids=["with its Redis", "its storage alone"])
def test_what_run_began_is_nobody_elses_until_it_is_submitted(fleet, has_redis):
    fleet.submit(trials=4)
    studies = Studies(fleet.client)
    fleet.client.flushall()
    fleet.pretend_worker()
    hand_in(prepared(fleet.spec, fleet.settings), fleet.settings, by_run=True)
    with fleet.service() as run:
        turn_until(run, lambda: studies.leases("s").queued(), "run drives it")
    asked = len(fleet.stored())
    if not has_redis:
        fleet.client.flushall()
        fleet.pretend_worker()
    with Service(fleet.settings) as service:
        turn(service)
        assert service.status("s") is None
        assert len(fleet.stored()) == asked
        if has_redis:
            fleet.pretend_worker()

            def reasons():
                return " ".join(StudyHandle("s", fleet.settings).status().waits_for)

            turn_until(
                service, lambda: "began it and was interrupted" in reasons(), "status says so"
            )
        submit(fleet.spec, fleet.settings)
        turn_until(service, lambda: service.status("s"), "handed in, it is driven")
    with fleet.service() as run:  # `run` once more does not make it its own
        hand_in(prepared(fleet.spec, fleet.settings), fleet.settings, by_run=True)
        turn(run, 3)
    assert not studies.is_by_run("s")


def test_a_study_that_was_over_for_the_release_before_is_left_alone(fleet):
    """It wrote a sum over all fields, those with their defaults included."""
    fleet.submit(trials=1)
    studies = Studies(fleet.client)
    text = fleet.client.hget(keys.study("s"), "spec")
    studies.facts.publish("s", {"over": hashlib.sha256(text.encode()).hexdigest()})
    with Service(fleet.settings) as service:
        turn(service)
        assert service.status("s") is None
        fleet.submit(trials=2)
        turn_until(service, lambda: service.status("s"), "extended, it is driven")


@pytest.mark.parametrize("sampler", ["grid", "qmc"])
def test_a_sequence_goes_on_where_it_was_however_often_its_orchestrator_is_killed(fleet, sampler):
    pytest.importorskip("scipy")
    space = {"x": {"type": "int", "low": 0, "high": 9, "step": 1}}
    if sampler == "qmc":
        space = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
    fleet.submit(sampler={"type": sampler, "seed": 3}, space=space, trials=10)
    for count in range(1, 6):
        with fleet.service() as service:
            turn_until(service, lambda c=count: len(fleet.stored()) >= min(10, 2 * c), "it asks")
            leases = Studies(fleet.client).leases("s")
            for number in sorted(leases.queued())[:2]:
                fleet.leases = leases
                fleet.commit(number, 0.5)
            service._roster.abandon("s")  # as a kill leaves it
    with fleet.service() as service:

        def is_over():
            for number in Studies(fleet.client).leases("s").queued():
                grant = fleet.leases.claim(number, "hand", 45.0)
                fleet.leases.commit(number, grant.token, TrialState.COMPLETE, Result(values=[0.5]))
            status = service.status("s")
            return status is not None and status.is_over

        turn_until(service, is_over, "it is over")
    values = [trial.params["x"] for trial in fleet.stored()]
    assert len(values) == len(set(values)) == 10, "each point once, and no more"
