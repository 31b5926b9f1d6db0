"""The orchestrator's loop against a real Redis, with the test in the part of the workers."""

from __future__ import annotations

import itertools
import sqlite3
import time

import optuna
import pytest
import redis
from hand_fleet import UNRENEWED_SECONDS, Fleet, is_over, look_around, put, turn_until
from optuna.distributions import FloatDistribution, distribution_to_json
from waiting import wait_until

from orchestrator.driving import dispatch, intake
from orchestrator.driving.driven import DrivenStudy
from orchestrator.driving.reaper import Reaper
from orchestrator.driving.service import Service
from orchestrator.handle import StudyHandle
from orchestrator.storage.journal import JournalFile
from orchestrator.storage.opening import StudyStorage, journal_path
from orchestrator.storage.tally import Tally
from workers.coordination import keys
from workers.coordination.clock import server_time_ms
from workers.coordination.inbox import Inbox
from workers.coordination.leases import TrialLeases
from workers.coordination.studies import Studies
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.errors import (
    FleetError,
    InvalidInputError,
    StorageFullError,
    StudyExistsError,
)
from workers.protocol.messages import Result
from workers.protocol.states import ProcessKind, TrialState
from workers.times import Times


@pytest.fixture
def fleet(client, settings, tmp_path):
    return Fleet(client, settings, tmp_path)


def test_a_study_is_driven_to_its_end_with_just_enough_in_flight(fleet):
    handle = fleet.submit(direction="maximize")
    assert handle.status().state == "running"
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "slots + 1 are in flight")
        for _ in range(5):
            service.turn()
        assert len(fleet.stored()) == 3
        fleet.commit(1, 0.5)
        turn_until(service, lambda: len(fleet.stored()) == 4, "the next is asked for")
        for number, value in ((0, 0.1), (2, 0.9), (3, 0.3)):
            fleet.commit(number, value)
        turn_until(service, lambda: service.status("s").is_over, "all are told")
    assert [trial.values for trial in fleet.stored()] == [[0.1], [0.5], [0.9], [0.3]]
    status = handle.status()
    assert (status.state, status.best.number, status.best.value) == ("finished", 2, 0.9)
    assert status.trials["complete"] == 4
    assert handle.best_trial.number == 2
    assert fleet.client.xlen(keys.inbox("s")) == 0
    assert all(fleet.client.pttl(keys.trial("s", number)) > 0 for number in range(4))


def test_what_a_study_waits_for_is_in_its_status(fleet):
    handle = fleet.submit()
    (reason,) = handle.status().waits_for
    assert "no orchestrator runs" in reason
    assert "not been looked at" in reason
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "it is driven")
        assert handle.status().waits_for == []
    with fleet.service():  # one that makes no turn
        fleet.client.hset(keys.study("s"), "fact:shown_ms", 0)
        (reason,) = handle.status().waits_for
        assert "has not looked at it" in reason
    with Service(fleet.settings, only="other"):
        (reason,) = handle.status().waits_for
        assert "no orchestrator that drives it runs" in reason
    (reason,) = handle.status().waits_for
    assert "what is shown is as of 20" in reason


def test_what_a_trial_does_before_its_steps_is_in_the_status(fleet):
    fleet.submit()
    registry = ProcessRegistry(fleet.client, fleet.settings.times.scaled(100))
    slot = ProcessRecord(registry, ProcessKind.TRIAL, parent=1)
    slot.identity = slot.identity._replace(pid=2)

    def activity(service):
        return [trial.activity for trial in service.status("s").running]

    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "a trial is enqueued")
        fleet.leases.claim(0, str(slot.identity), UNRENEWED_SECONDS)
        slot.update(activity="rows read: 3 of 9")
        turn_until(service, lambda: activity(service) == ["rows read: 3 of 9"], "it is shown")
        slot.update(activity=None)
        turn_until(service, lambda: activity(service) == [None], "it is taken back")


def test_every_end_is_told_to_optuna_in_its_terms(fleet):
    fleet.submit(trials=3, max_failures=1)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        fleet.commit(0, None, TrialState.FAILED)
        pruned = fleet.claim(1)
        fleet.leases.report(1, pruned.token, 1, 0.75)
        fleet.leases.commit(1, pruned.token, TrialState.PRUNED, Result())
        dead = fleet.claim(2)
        fleet.leases.fail(2, dead.token, Result(error="boom"), 1, 0.0)
        turn_until(service, lambda: service.status("s").is_over, "all are told")
    states = [trial.state.name for trial in fleet.stored()]
    assert states == ["FAIL", "PRUNED", "FAIL"]
    assert fleet.stored()[1].value == 0.75
    status = StudyHandle("s", fleet.settings).status()
    assert status.state == "failed"
    assert {name: count for name, count in status.trials.items() if count} == {
        "failed": 1, "pruned": 1, "dead": 1,
    }  # fmt: skip
    assert status.recent[-1].error == "boom"
    with pytest.raises(FleetError, match="no complete trial"):
        _ = StudyHandle("s", fleet.settings).best_trial


def test_an_entry_that_comes_twice_counts_once(fleet):
    fleet.submit(trials=1)
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "it is in flight")
        service._inbox.acknowledge = lambda *_: None  # dies between tell and acknowledge
        fleet.commit(0, 0.5)
        turn_until(service, lambda: fleet.stored()[0].values == [0.5], "it is told")
    assert fleet.client.xlen(keys.inbox("s")) == 1
    with fleet.service() as service:
        turn_until(service, lambda: not fleet.client.xlen(keys.inbox("s")), "it is acknowledged")
    assert [trial.values for trial in fleet.stored()] == [[0.5]]


def test_an_entry_that_redis_gave_out_with_an_answer_that_was_lost_is_taken_back(
    client, settings, tmp_path
):
    fleet = Fleet(client, settings.model_copy(update={"time_scale": 0.02}), tmp_path)
    fleet.submit(trials=1)
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "it is in flight")
        fleet.commit(0, 0.5)
        # as what redis-py sends again once it has lost the answer
        assert Inbox(client, service._inbox.consumer).read(["s"], 1)
        turn_until(service, lambda: service.status("s").is_over, "it is told all the same")
    assert fleet.client.xlen(keys.inbox("s")) == 0


def test_a_trial_that_was_asked_for_and_never_enqueued_is_enqueued_by_the_next(fleet):
    fleet.submit(trials=1)
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "it is in flight")
    params = fleet.leases.record(0).params
    for key in (keys.trial("s", 0), keys.queued("s")):
        fleet.client.delete(key)
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "it is in flight again")
        assert fleet.leases.record(0).params == params


def test_a_question_is_answered_while_ends_of_other_trials_are_waited_for(fleet, monkeypatch):
    fleet.submit(trials=9, space={})
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "they are in flight")
        token = fleet.claim(1).token
        fleet.commit(0, 0.5)
        turn_until(service, lambda: service.status("s").trials["complete"], "its end is told")
        for name in ("_GATHER_SECONDS", "_GATHER_SHORT_SECONDS"):
            monkeypatch.setattr(intake, name, 1e10)  # no sleep is so long
        fleet.commit(2, 0.5)  # and another one's is waited for
        asked = distribution_to_json(FloatDistribution(0.0, 1.0))
        assert fleet.leases.suggest(1, token, "x", asked)[0] == "OK"
        replied = turn_until(
            service, lambda: fleet.leases.await_reply(1, token, 0.001), "it is answered"
        )
        assert replied["request"] == "suggest:x"


def test_none_of_a_seeded_study_waits_ready_before_one_told_what_its_objective_asks_for(fleet):
    fleet.submit(trials=9, space={}, sampler={"type": "tpe", "seed": 7})
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 2, "each slot has one")
        for _ in range(5):
            service.turn()
        assert len(fleet.leases.queued()) == 2
        fleet.commit(0, 0.5)
        turn_until(service, lambda: len(fleet.leases.queued()) > 2, "others wait ready")


@pytest.mark.parametrize("seed", [None, 7])
def test_of_a_seeded_study_on_one_slot_each_trial_has_a_message_of_its_own(
    fleet, monkeypatch, seed
):
    """What is left of one is announced anew where its first trial takes long: behind the others."""
    told = []
    monkeypatch.setattr(
        DrivenStudy,
        "send_hint",
        lambda _study, number, delay_seconds=0.0, more=(): told.append([number, *more]),
    )
    fleet.pretend_worker(slots=1)
    fleet.submit(trials=40, sampler={"type": "random", "seed": seed})
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "it is in flight")
        token = fleet.claim(0).token
        quick = Result(values=[0.5], busy_seconds=0.001)
        fleet.leases.commit(0, token, TrialState.COMPLETE, quick)
        turn_until(service, lambda: len(fleet.leases.queued()) > 9, "many wait ready")
    assert any(len(each) > 1 for each in told) == (seed is None)
    assert [number for each in told for number in each] == list(range(sum(map(len, told))))


@pytest.mark.parametrize("busy_seconds", [0.003, 0.3])
def test_ends_are_waited_for_the_longer_where_trials_are_short(fleet, monkeypatch, busy_seconds):
    is_short = busy_seconds < 0.1
    fleet.submit(trials=9)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "they are in flight")

        def end(number):
            token = fleet.claim(number).token
            result = Result(values=[0.5], busy_seconds=busy_seconds)
            fleet.leases.commit(number, token, TrialState.COMPLETE, result)

        end(0)
        turn_until(service, lambda: service.status("s").trials["complete"], "its end is told")
        monkeypatch.setattr(intake, "_GATHER_SHORT_SECONDS", 1.0)
        assert service._intake.are_ends
        end(1)
        begin = time.monotonic()
        service._intake._read_at = begin
        service.turn()
        assert (time.monotonic() - begin >= 1.0) == is_short


def test_ends_of_one_study_that_keep_coming_keep_no_other_from_being_read(fleet, monkeypatch):
    fleet.pretend_worker(slots=24)
    fleet.submit(trials=500, space={})  # of such a one, questions end the gathering
    put(fleet, "other", trials=50)
    other = Studies(fleet.client).leases("other")

    def turn_after_an_end(service):
        if queued := fleet.leases.queued():
            fleet.commit(min(queued), 0.5)
        service.turn()

    with Service(fleet.settings) as service:
        turn_until(service, lambda: len(fleet.leases.queued()) > 9 and other.queued(), "both run")
        for name in ("_GATHER_SECONDS", "_GATHER_SHORT_SECONDS"):
            monkeypatch.setattr(intake, name, 0.3)
        gathers = service._intake
        wait_until(lambda: turn_after_an_end(service) or gathers.are_ends, "ends are gathered")
        token = other.claim(0, "hand", UNRENEWED_SECONDS).token
        other.commit(0, token, TrialState.COMPLETE, Result(values=[0.5], busy_seconds=60.0))
        for _ in range(8):
            turn_after_an_end(service)
        assert service.status("other").trials["complete"] == 1


def test_a_lease_that_ran_out_is_reaped_and_the_trial_announced_again(client, settings, tmp_path):
    quick = settings.model_copy(update={"time_scale": 0.02})
    fleet = Fleet(client, quick, tmp_path)
    fleet.submit(trials=1)
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "it is in flight")
        client.delete(f"{keys.CELERY_PREFIX}default")
        fleet.leases.claim(0, "hand", quick.times.lease)
        turn_until(service, fleet.leases.queued, "it is in the queue again")
        assert fleet.leases.record(0).losses == 1
        assert "lease ran out" in fleet.leases.record(0).error
        turn_until(
            service,
            lambda: (
                client.llen(f"{keys.CELERY_PREFIX}default") or client.hlen("fleet:celery:unacked")
            ),
            "a hint is sent",
        )


def test_a_sweep_that_comes_late_reaps_nothing(fleet):
    """It was asked for before Redis was away, or this host stood still: live holders renew now."""
    times = Times().scaled(0.05)  # a lease of 2.25 s
    fleet.submit(trials=1)
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "it is in flight")
        fleet.leases.claim(0, "hand", 0.001)
        study, state = service._roster.drivers["s"].study, lambda: fleet.leases.record(0).state
        ended_ms = server_time_ms(fleet.client) + 60_000
        reaper = Reaper(times)
        reaper.sweep(study, ended_ms)
        assert state() is TrialState.RUNNING, "it has only begun"
        wait_until(lambda: reaper.is_due(ended_ms), "a sweep is due")
        reaper.be_patient()
        reaper.sweep(study, ended_ms)
        assert state() is TrialState.RUNNING, "Redis was away meanwhile"
        wait_until(lambda: reaper.is_due(ended_ms), "a sweep is due")
        until = time.monotonic() + times.lease
        wait_until(lambda: time.monotonic() > until, "this host stands still")
        reaper.sweep(study, ended_ms)
        assert state() is TrialState.RUNNING, "it is late"

        def is_reaped():
            if reaper.is_due(ended_ms):
                reaper.sweep(study, ended_ms)
            return state() is TrialState.QUEUED

        wait_until(is_reaped, "one that comes in time reaps it")


def test_what_could_not_be_opened_or_closed_is_free_for_the_next(fleet, monkeypatch):
    fleet.submit()
    path = journal_path(fleet.settings.home, "s")
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "it is in flight")
        hints = service._hints
        patch = pytest.MonkeyPatch()
        patch.setattr(DrivenStudy, "note_clock", failing)  # as a disk that is full
        look_around(service, 0.0)
    patch.undo()
    assert fleet.client.get(keys.lead("s")) is None
    JournalFile(path).close()  # whoever has it open has its lock
    patch.setattr(Tally, "__init__", failing)
    with pytest.raises(StorageFullError) as while_this_is_held:
        DrivenStudy(fleet.client, hints, "s", fleet.settings, leader="")
    patch.undo()
    JournalFile(path).close()
    path.write_text('{"op_code": 77, "worker_id": "x"}\n{"op_code":\n{}\n')
    with pytest.raises(InvalidInputError) as likewise:
        StudyStorage.open(f"journal://{path}")
    JournalFile(path).close()
    assert while_this_is_held.value is not likewise.value


def failing(*_arguments, **_options):
    raise StorageFullError("no space left on device")


def test_a_grid_with_its_last_point_under_way_comes_back_in_a_redis_that_lost_its_data(fleet):
    space = {"x": {"type": "int", "low": 0, "high": 1}}
    fleet.submit(trials=50, space=space, sampler={"type": "grid", "seed": 1})
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 2, "both are in flight")
        fleet.commit(0, 0.5)
        turn_until(service, lambda: fleet.stored()[0].value == 0.5, "one is told")
        service._roster.drivers[
            "s"
        ].study._note_exhausted()  # as the sampler says at its last point
        turn_until(service, lambda: fleet.stored()[0].value, "it is taken")
    fleet.client.flushall()
    fleet.pretend_worker()
    with Service(fleet.settings) as service:
        turn_until(service, lambda: is_over(fleet, "s"), "it comes to its end")
    assert [trial.value for trial in fleet.stored()] == [0.5, 0.5]


def test_suggestions_and_verdicts_are_answered(fleet):
    fleet.submit(trials=2, space={}, pruner={"type": "threshold", "upper": 1.0})
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 2, "they are in flight")
        grant = fleet.claim(0)
        distribution = optuna.distributions.FloatDistribution(2.0, 3.0)
        text = optuna.distributions.distribution_to_json(distribution)

        def ask():
            return fleet.leases.await_reply(0, grant.token, 0.01)

        assert fleet.leases.suggest(0, grant.token, "x", text) == ["OK"]
        reply = turn_until(service, ask, "the suggestion is answered")
        assert reply["request"] == "suggest:x"
        assert 2.0 <= reply["value"] <= 3.0
        assert fleet.stored()[0].params == {"x": reply["value"]}, "it is on disk by then"
        categorical = optuna.distributions.CategoricalDistribution(["a"])
        wrong = optuna.distributions.distribution_to_json(categorical)
        fleet.client.hdel(keys.trial("s", 0), "param:x")
        fleet.leases.suggest(0, grant.token, "x", wrong)
        assert "error" in turn_until(service, ask, "a wrong question is answered too")
        for step, value, prune in ((1, 0.5, False), (2, 1.5, True)):
            fleet.leases.report(0, grant.token, step, value)
            answer = turn_until(service, ask, "the report is answered")
            assert answer == {"request": f"report:{step}", "prune": prune}
    assert fleet.stored()[0].intermediate_values == {1: 0.5, 2: 1.5}


def test_a_study_has_one_orchestrator(fleet):
    fleet.submit()
    with fleet.service() as first, fleet.service() as second:
        first.turn()
        with pytest.raises(InvalidInputError, match="another orchestrator"):
            second.turn()


def test_a_finished_study_can_be_extended_and_not_changed(fleet):
    fleet.submit(trials=1)
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "it is in flight")
        fleet.commit(0, 0.5)
        turn_until(service, lambda: service.status("s").is_over, "it is over")
    with pytest.raises(StudyExistsError, match="exists with direction"):
        fleet.submit(direction="maximize", trials=2)
    extended = fleet.submit(trials=2)
    assert not extended.status().is_over, "although nobody has looked at it yet"
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "one more is in flight")
        fleet.commit(1, 0.25)
        turn_until(service, lambda: service.status("s").is_over, "it is over again")
    assert StudyHandle("s", fleet.settings).best_trial.number == 1


def test_after_its_timeout_a_study_starts_nothing_more(fleet):
    fleet.submit(trials=50, timeout=1000.0)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        running, killed = fleet.claim(0), fleet.claim(1)
        fleet.leases.release(1, killed.token)
        fleet.submit(trials=50, timeout=0.01)
        turn_until(
            service, lambda: service.status("s").trials["cancelled"], "the last is not begun"
        )
        assert fleet.leases.queued().keys() == {1}, "it had begun, and goes on"
        fleet.leases.commit(0, running.token, TrialState.COMPLETE, Result(values=[0.5]))
        fleet.commit(1, 0.5)
        turn_until(service, lambda: service.status("s").is_over, "it is over")
    states = [trial.user_attrs["trialfleet:state"] for trial in fleet.stored()]
    assert states == ["COMPLETE", "COMPLETE", "CANCELLED"]
    assert "time was up before it began" in fleet.stored()[2].user_attrs["trialfleet:error"]


def test_a_timeout_holds_however_often_the_orchestrator_is_killed(fleet):
    fleet.submit(trials=1000, timeout=1.5)

    def asked_in(seconds):
        """How many trials were asked for in all, at a kill after so many seconds."""
        with fleet.service() as service:
            until = time.monotonic() + seconds

            def is_time():
                for number in fleet.leases.queued():
                    fleet.commit(number, 0.5)
                return time.monotonic() > until

            turn_until(service, is_time, "it is killed")
            service._roster.abandon("s")  # as a kill leaves it: nothing is written at the end
        return len(fleet.stored())

    asked = itertools.pairwise(asked_in(0.7) for _ in range(20))
    assert any(before == after for before, after in asked), "the seconds of all of them count"


def test_a_study_without_workers_runs_out_of_time_too(client, settings, tmp_path):
    fleet = Fleet(client, settings.model_copy(update={"time_scale": 0.01}), tmp_path)
    client.delete(keys.PROCESSES)
    fleet.submit(trials=2, timeout=0.5)
    with fleet.service() as service:
        turn_until(service, lambda: service.status("s").is_over, "its time is up")
    assert fleet.stored() == []


def test_the_best_trial_violates_no_constraint(fleet):
    handle = fleet.submit(trials=3)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "they are in flight")
        for number, violation in ((0, 1.0), (1, -1.0), (2, 0.0)):
            token = fleet.claim(number).token
            result = Result(values=[float(number)], constraints={"size": violation})
            fleet.leases.commit(number, token, TrialState.COMPLETE, result)
            if number == 0:
                turn_until(service, lambda: service.status("s").infeasible, "it is told")
                assert service.status("s").best is None
                with pytest.raises(FleetError, match="no complete trial that violates no"):
                    _ = handle.best_trial
        turn_until(service, lambda: service.status("s").is_over, "all are told")
    status = handle.status()
    assert (status.best.number, status.infeasible) == (1, 1)
    assert [trial.number for trial in status.top] == [1, 2]
    assert handle.best_trial.number == 1


def test_of_several_directions_the_pareto_front_is_shown(fleet):
    values = [[1.0, 1.0], [2.0, 2.0], [3.0, 1.5], [0.0, 0.0]]
    handle = fleet.submit(trials=4, direction=None, directions=["minimize", "maximize"])
    with fleet.service() as service:
        for number, pair in enumerate(values):
            turn_until(service, lambda n=number: n in fleet.leases.queued(), "it is in flight")
            token = fleet.claim(number).token
            fleet.leases.commit(number, token, TrialState.COMPLETE, Result(values=pair))
        turn_until(service, lambda: service.status("s").is_over, "all are told")
    status = handle.status()
    assert [trial.number for trial in status.top] == [3, 0, 1]
    assert (status.front, status.best.number) == (3, 3)
    assert sorted(trial.number for trial in handle.best_trials) == [0, 1, 3]
    with pytest.raises(FleetError, match="see `best_trials`"):
        _ = handle.best_trial


@pytest.mark.parametrize("storage", ["journal", "sqlite"])
def test_a_study_that_is_read_cannot_be_written(client, settings, tmp_path, storage):
    if storage == "sqlite":
        settings = settings.model_copy(update={"storage": f"sqlite:///{tmp_path}/studies.db"})
    fleet = Fleet(client, settings, tmp_path)
    handle = fleet.submit(trials=1)
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "it is in flight")
        study = handle.study
        trial = optuna.trial.create_trial(value=1.0)
        for write in (
            lambda: study.enqueue_trial({"x": 0.5}),
            lambda: study.add_trial(trial),
            lambda: study.set_user_attr("a", 1),
            study.ask,
            lambda: study.tell(0, 1.0),
        ):
            with pytest.raises(FleetError, match="for reading only"):
                write()
        fleet.commit(0, 0.5)
        turn_until(service, lambda: service.status("s").is_over, "nothing has changed")
    assert [trial.value for trial in handle.study.trials] == [0.5]


def test_nothing_is_asked_for_while_no_worker_is_there(fleet):
    fleet.client.flushall()
    fleet.submit()
    with fleet.service() as service:
        for _ in range(5):
            service.turn()
    assert fleet.stored() == []


def test_a_service_drives_all_studies_and_leaves_those_that_are_over(fleet):
    fleet.submit(trials=1)
    with Service(fleet.settings) as service:
        turn_until(service, fleet.leases.queued, "it is in flight")
        fleet.commit(0, 0.5)
        turn_until(service, lambda: service.status("s") is None, "it is left")
        for _ in range(3):
            service.turn()
        assert service.status("s") is None
        fleet.submit(trials=2)
        turn_until(service, fleet.leases.queued, "extended, it is driven again")


def test_a_stopped_study_stays_stopped_in_a_redis_that_lost_its_data(fleet):
    fleet.submit(trials=60)
    with Service(fleet.settings) as service:
        turn_until(service, fleet.leases.queued, "it is in flight")
        fleet.commit(0, 0.5)
        Studies(fleet.client).ask_to_stop("s")
        turn_until(service, lambda: service.status("s") is None, "it is over")
    fleet.client.flushall()
    fleet.pretend_worker()
    asked = len(fleet.stored())
    with Service(fleet.settings) as service:
        over = turn_until(
            service, lambda: Studies(fleet.client).facts.get("s", "over"), "it is over"
        )
        assert over
        for _ in range(5):
            service.turn()
        assert len(fleet.stored()) == asked
        fleet.submit(trials=60)
        turn_until(service, lambda: len(fleet.stored()) > asked, "handed in again, it goes on")


def test_trials_that_wait_for_a_later_time_keep_no_slot_idle(fleet):
    fleet.submit(trials=9, max_failures=9)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        for number in (0, 1):
            token = fleet.claim(number).token
            fleet.leases.fail(number, token, Result(error="boom"), 9, 1000.0)
        turn_until(service, lambda: len(fleet.leases.queued()) == 5, "two more are asked for")


def test_the_status_can_be_had_without_redis(fleet):
    fleet.submit(trials=2)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 2, "they are in flight")
        fleet.commit(0, 0.5)
        turn_until(service, lambda: service.status("s").best, "one is told")
    alone = fleet.settings.model_copy(update={"redis_url": None})
    status = StudyHandle("s", alone).status()
    assert (status.trials["complete"], status.trials["queued"]) == (1, 1)
    assert status.best.value == 0.5
    with pytest.raises(InvalidInputError, match="study 't' is not known"):
        StudyHandle("t", alone).status()


def test_what_was_read_when_redis_failed_is_read_again(fleet, monkeypatch):
    """It stays with the consumer group, and nobody else would ask for it."""
    fleet.submit(trials=2)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 2, "they are in flight")
        settle, failures = TrialLeases.settle, [1, 1]

        def fails_twice(self, number, state, **options):
            if failures:
                failures.pop()
                raise redis.ConnectionError("Connection closed by server.")
            return settle(self, number, state, **options)

        monkeypatch.setattr(TrialLeases, "settle", fails_twice)
        for number in (0, 1):
            fleet.commit(number, 0.5)
        turn_until(service, lambda: service.status("s").is_over, "both are told")
    assert fleet.client.xlen(keys.inbox("s")) == 0
    assert fleet.client.pttl(keys.trial("s", 0)) > 0


def test_a_trial_is_announced_again_by_its_age_and_not_too_often(client, settings, tmp_path):
    quick = settings.model_copy(update={"time_scale": 0.01})  # reconciles after 0.6 s
    fleet = Fleet(client, quick, tmp_path)
    fleet.submit(trials=1)
    queue, told_ms = f"{keys.CELERY_PREFIX}default", []

    def is_announced_again():
        announced = service._roster.drivers["s"]._opened.dispatcher._announced
        told_ms.extend({at for at, _ in announced.values()} - set(told_ms))
        return len(told_ms)

    with fleet.service() as service:
        turn_until(service, lambda: client.llen(queue) == 1, "it is announced")
        queued_ms = fleet.leases.queued()[0]
        client.delete(queue)
        turn_until(service, lambda: is_announced_again() == 1, "its hint is not there")
        client.delete(queue)
        client.rpush(queue, "a hint of another study", "and one more")
        turn_until(service, lambda: is_announced_again() == 3, "whatever else waits")
    waits_ms = [later - before for before, later in itertools.pairwise([queued_ms, *told_ms])]
    doubled = (0, 0, 1)  # in an empty queue nothing says that its own is among those that wait
    assert all(wait >= 600 * 2**count for count, wait in zip(doubled, waits_ms, strict=True)), (
        "ever more rarely"
    )


def test_what_no_worker_keeps_is_announced_at_the_same_pace_for_ever(
    client, settings, tmp_path, monkeypatch
):
    """So that one which comes and can take it finds it, whatever else waits by then."""
    monkeypatch.setattr(dispatch, "_MAX_DOUBLED", 1)
    quick = settings.model_copy(update={"time_scale": 0.01})  # reconciles after 0.6 s
    fleet = Fleet(client, quick, tmp_path)
    fleet.submit(trials=1)
    queue, told_ms = f"{keys.CELERY_PREFIX}default", []
    with fleet.service() as service:
        turn_until(service, lambda: client.llen(queue) == 1, "it is announced")
        dispatcher = service._roster.drivers["s"]._opened.dispatcher

        def is_announced_often():
            client.delete(queue)  # what a worker that may not run it does with its hint
            told_ms.extend({at for at, _ in dispatcher._announced.values()} - set(told_ms))
            return len(told_ms) >= 3

        turn_until(service, is_announced_often, "it is announced again and again")
        assert [count for _, count in dispatcher._announced.values()] == [0]
        dispatcher._announced[0] = told_ms[-1], 5000  # as earlier releases counted
        client.rpush(queue, "a hint of another study")
        turn_until(
            service, lambda: dispatcher._announced[0][1] == 5001, "after some doublings at most"
        )


def test_a_database_that_does_not_answer_is_waited_for(client, settings, tmp_path):
    database = tmp_path / "studies.db"
    fleet = Fleet(
        client, settings.model_copy(update={"storage": f"sqlite:///{database}"}), tmp_path
    )
    fleet.submit(trials=1)
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "it is in flight")
        stranger = sqlite3.connect(database)
        stranger.execute("BEGIN EXCLUSIVE")
        fleet.commit(0, 0.5)
        turn_until(service, lambda: service.status("s").stalled, "the study is left alone")
        stranger.close()
        turn_until(service, lambda: service.status("s").is_over, "it is told when it may be")
    assert fleet.stored()[0].values == [0.5]
    assert fleet.client.xlen(keys.inbox("s")) == 0
