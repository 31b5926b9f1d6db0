"""What fails in one study, and what its sampler ends, concerns that study and no other."""

from __future__ import annotations

import json
import shutil
import time

import gated_sampler
import pytest
import redis
from hand_fleet import (
    UNRENEWED_SECONDS,
    Fleet,
    is_over,
    look_around,
    put,
    turn_until,
    work,
)
from optuna.exceptions import StorageInternalError

from orchestrator.driving import service as service_module
from orchestrator.driving.driven import DrivenStudy
from orchestrator.driving.service import Service
from orchestrator.handle import StudyHandle
from orchestrator.storage.attributes import WISH_ATTR
from orchestrator.storage.opening import journal_path
from workers.coordination import keys
from workers.coordination.deletions import Deletions
from workers.coordination.grants import Grant
from workers.coordination.studies import Studies
from workers.protocol.errors import InvalidInputError, StudyStalledError
from workers.protocol.messages import Result
from workers.protocol.states import Charge, TrialState, Wish

#: What no preflight has seen: an option that is found to be wrong when the sampler uses it.
WRONG_OPTION = {"type": "tpe", "n_startup_trials": 0, "n_ei_candidates": 0}


@pytest.fixture
def fleet(client, settings, tmp_path):
    return Fleet(client, settings, tmp_path)


@pytest.fixture
def gated():
    with gated_sampler.closed():
        yield gated_sampler


def stalled(fleet, name):
    return Studies(fleet.client).facts.get(name, "stalled")


def test_what_fails_in_a_study_stalls_it_with_the_reason_and_the_others_go_on(fleet):
    studies, home = Studies(fleet.client), fleet.settings.home
    put(fleet, "sampler", sampler=WRONG_OPTION)
    put(fleet, "pruner", pruner={"type": "percentile", "percentile": 25.0, "n_min_trials": "x"})
    put(fleet, "unreadable")
    fleet.client.hset(keys.study("unreadable"), "spec", '{"name": 3}')
    put(fleet, "no-json")
    fleet.client.hset(keys.study("no-json"), "spec", "what is this")
    put(fleet, "corrupt")
    journal_path(home, "corrupt").parent.mkdir(parents=True)
    journal_path(home, "corrupt").write_text('{"op_code": 77, "worker_id": "x"}\n{"op_code":\n{}\n')
    wrong = {"inbox": keys.inbox("inbox"), "leases": keys.queued("leases")}
    for name in wrong:
        put(fleet, name)
    put(fleet, "url")
    fleet.client.hset(keys.study("url"), "storage", "mysterious://user:secret@nowhere/x")
    put(fleet, "good")
    bad = set(studies.names()) - {"good"}
    with Service(fleet.settings) as service:

        def good_is_over():
            work(fleet, "good")
            status = studies.facts.get("good", "status")
            return status is not None and status["state"] == "finished"

        for name, key in wrong.items():
            turn_until(service, lambda n=name: studies.facts.get(n, "status"), "it is driven, too")
            fleet.client.delete(key)
            fleet.client.set(key, "something else")
        turn_until(service, good_is_over, "the good one is driven to its end")
        turn_until(service, lambda: all(stalled(fleet, n) for n in bad), "each bad one says why")
        deadline = time.monotonic() + 3.0
        turn_until(service, lambda: time.monotonic() > deadline, "they are tried again")
    reasons = {name: stalled(fleet, name) for name in bad}
    assert stalled(fleet, "good") is None
    assert "secret" not in json.dumps(reasons)
    assert reasons["unreadable"].startswith("opening it: InvalidInputError: study 'unreadable'")
    assert ": ValueError: " in reasons["sampler"]


def test_what_nobody_can_read_of_one_study_ends_no_orchestrator(client, settings, tmp_path):
    fleet = Fleet(client, settings.model_copy(update={"time_scale": 0.02}), tmp_path)
    studies = Studies(client)
    names = ("lead-at-start", "lead-amid-it", "lead-of-a-kind", "over", "record")
    for name in names:
        put(fleet, name)
    client.set(keys.lead("lead-at-start"), "what is this")
    client.hset(keys.study("over"), "fact:over", '{"')
    with Service(fleet.settings) as service:
        driven = [studies.leases(name).queued for name in names[1:]]
        turn_until(service, lambda: all(queued() for queued in driven), "the others are driven")
        client.set(keys.lead("lead-amid-it"), "what is this")
        client.delete(keys.lead("lead-of-a-kind"))
        client.hset(keys.lead("lead-of-a-kind"), "a", "b")
        studies.leases("record").claim(0, "hand", 0.1)
        client.hset(keys.trial("record", 0), "losses", " 1")  # no integer to a script
        bad = ("lead-at-start", "lead-amid-it", "lead-of-a-kind")
        turn_until(service, lambda: all(stalled(fleet, name) for name in bad), "each says why")
        turn_until(service, lambda: is_over(fleet, "over"), "the good one is driven to its end")
        turn_until(service, lambda: is_over(fleet, "record"), "its record was written anew")
        reasons = {name: stalled(fleet, name) for name in bad}
        client.delete(*(keys.lead(name) for name in bad[:3]))
        turn_until(service, lambda: all(is_over(fleet, name) for name in names), "mended, all are")
    for name in bad[:2]:
        assert f"DEL {keys.lead(name)}" in reasons[name]
    assert "WRONGTYPE" in reasons["lead-of-a-kind"]


def test_an_orchestrator_of_one_study_says_what_its_lead_record_holds(fleet):
    fleet.submit()
    fleet.client.set(keys.lead("s"), "what is this")
    with fleet.service() as service, pytest.raises(InvalidInputError, match="'what is this'.*DEL"):
        turn_until(service, lambda: False, "it says so")


def test_a_redis_that_takes_no_writes_is_nobody_s_fault(fleet):
    put(fleet, "s")
    with Service(fleet.settings) as service:
        turn_until(service, Studies(fleet.client).leases("s").queued, "it is driven")
        fleet.client.config_set("maxmemory", 1)
        try:
            seconds = time.monotonic() + 2.0
            turn_until(service, lambda: time.monotonic() > seconds, "it is waited for")
        finally:
            fleet.client.config_set("maxmemory", 0)
        assert stalled(fleet, "s") is None
        turn_until(service, lambda: is_over(fleet, "s"), "it goes on")


def test_what_nobody_can_read_of_one_stored_study_ends_no_start(fleet):
    for name in ("bad", "good"):
        put(fleet, name)
    with Service(fleet.settings) as service:
        leases = [Studies(fleet.client).leases(name) for name in ("bad", "good")]
        turn_until(service, lambda: all(each.queued() for each in leases), "both are driven")
        service._roster.drivers["bad"].study.study.set_user_attr(WISH_ATTR, "what is this")
    fleet.client.flushall()
    fleet.pretend_worker()
    with Service(fleet.settings) as service:
        turn_until(service, lambda: is_over(fleet, "good"), "the good one comes back")
    assert not Studies(fleet.client).exists("bad")


def test_a_study_that_is_mended_goes_on(fleet):
    put(fleet, "s", sampler=WRONG_OPTION)
    with Service(fleet.settings) as service:
        turn_until(service, lambda: stalled(fleet, "s"), "it says why")
        assert StudyHandle("s", fleet.settings).status().stalled.count("ValueError") == 1
        shutil.rmtree(journal_path(fleet.settings.home, "s").parent)
        put(fleet, "s")
        turn_until(service, lambda: Studies(fleet.client).leases("s").queued(), "it is in flight")
        turn_until(service, lambda: stalled(fleet, "s") is None, "it no longer says so")


def test_a_redis_that_loses_its_data_at_any_moment_gets_every_study_back(fleet, monkeypatch):
    put(fleet, "s", trials=3)
    put(fleet, "bad", sampler=WRONG_OPTION)
    studies, command = Studies(fleet.client), redis.Redis.execute_command
    countdown = [-1]

    def flush_before(self, *words, **options):
        countdown[0] -= 1
        if countdown[0] == 0:
            command(fleet.client, "FLUSHALL")
            fleet.pretend_worker()
        return command(self, *words, **options)

    monkeypatch.setattr(redis.Redis, "execute_command", flush_before)
    monkeypatch.setattr(service_module, "_BLOCK_MS", 5)  # more turns in the same time
    with Service(fleet.settings) as service:
        turn_until(service, lambda: len(studies.leases("s").queued()) == 3, "it is in flight")
        turn_until(service, lambda: stalled(fleet, "bad"), "the other one says why")
        for moment in range(1, 40):
            countdown[0] = moment
            turn_until(service, lambda: countdown[0] <= 0, "Redis loses its data")
            turn_until(
                service,
                lambda: studies.exists("s") and len(studies.leases("s").queued()) == 3,
                f"before command {moment}: it is in flight again",
            )
            turn_until(service, lambda: studies.exists("bad"), "the other one is there, too")
            assert stalled(fleet, "s") is None
            assert studies.spec("s").trials == 3
        studies.leases("s").claim(1, "hand", 45.0)
        studies.ask_to_stop("s")
        turn_until(service, lambda: not studies.leases("s").queued(), "what waits is cancelled")
        countdown[0] = 1
        turn_until(service, lambda: service.status("s") is None, "what ran is not started again")
        assert studies.wish("s") is Wish.STOP


def test_an_orchestrator_of_one_study_alone_gives_up_after_a_few_tries(fleet):
    put(fleet, "s", sampler=WRONG_OPTION)
    with (
        fleet.service() as service,
        pytest.raises(StudyStalledError, match="does not get on: .*ValueError"),
    ):
        turn_until(service, lambda: False, "it gives up")
    assert any("ValueError" in (status.stalled or "") for status in fleet.statuses)


def test_a_sampler_that_takes_its_time_holds_up_no_other_study_and_keeps_its_right(fleet, gated):
    fleet.settings = gated.allowed(fleet.settings)
    put(fleet, "slow", sampler=gated.SAMPLER)
    put(fleet, "quick", trials=5)
    lease = fleet.settings.times.lease
    with Service(fleet.settings) as service:
        turn_until(service, gated.asked, "the slow one is asked")
        begun = time.monotonic()

        def quick_is_over():
            work(fleet, "quick")
            over = Studies(fleet.client).facts.get("quick", "over") is not None
            return over and time.monotonic() - begun > 1.5 * lease

        turn_until(service, quick_is_over, "the quick one is over")
        assert fleet.client.get(keys.lead("slow")) is not None
        assert not Studies(fleet.client).leases("slow").queued()
        gated.gate.set()
        slow = Studies(fleet.client).leases("slow")
        turn_until(service, slow.queued, "the slow one goes on")
    assert stalled(fleet, "slow") is None


def test_studies_that_are_over_cost_nothing_and_go_on_when_they_are_asked_to(fleet):
    studies = Studies(fleet.client)
    names = [f"s-{index}" for index in range(300)]
    for name in names:
        put(fleet, name)
        spec = studies.spec(name)
        studies.facts.publish_end(name, {}, spec.digest(), studies.submitted(name).revision)
    studies.facts.publish("s-7", {"over": studies.spec("s-7").digest()})
    fleet.client.srem(keys.OVER, "s-7")  # as an earlier release leaves it

    def looks():
        return fleet.client.info("commandstats")["cmdstat_hmget"]["calls"]

    with Service(fleet.settings) as service:
        turn_until(service, lambda: fleet.client.scard(keys.OVER) == 300, "all are known")
        before = looks()
        look_around(service, 2.5)
        assert looks() - before < 50
        assert service._catalogue.names() == []
        StudyHandle("s-3", fleet.settings).extend(trials=3)
        # as an earlier release extends one
        fleet.client.hset(
            keys.study("s-200"),
            "spec",
            studies.spec("s-3").model_copy(update={"name": "s-200"}).model_dump_json(),
        )
        fleet.client.hdel(keys.study("s-200"), "fact:over")
        for name in ("s-3", "s-200"):
            turn_until(service, studies.leases(name).queued, "it goes on")


def test_nothing_is_kept_of_studies_that_are_over_or_gone(fleet):
    studies = Studies(fleet.client)
    put(fleet, "bad", sampler=WRONG_OPTION)
    for name in ("over", "gone", "elsewhere"):
        put(fleet, name)
    fleet.client.set(keys.lead("elsewhere"), "elsewhere:boot:1:1")
    with Service(fleet.settings) as service:
        turn_until(service, lambda: is_over(fleet, "over"), "one is over")
        turn_until(service, lambda: stalled(fleet, "bad"), "one is stalled")
        turn_until(service, studies.leases("gone").queued, "one is driven")
        Deletions(fleet.client).begin("gone")
        Deletions(fleet.client).begin("bad")
        other = studies.submitted("elsewhere")
        studies.facts.publish_end("elsewhere", {}, other.spec.digest(), other.revision)

        def is_forgotten():
            parts = ("roster", "admission", "allotment", "deletions", "isolation")
            holders = [vars(service)[f"_{part}"] for part in parts]
            holders += [service, service._isolation.stalls]
            kept = [value for each in holders for value in vars(each).values()]
            return not any(value for value in kept if isinstance(value, dict | set))

        turn_until(service, is_forgotten, "nothing is kept")
        assert not studies.exists("gone")


@pytest.mark.parametrize("sampler", ["grid", "bruteforce"])
def test_a_study_whose_sampler_has_nothing_left_to_suggest_is_finished(fleet, sampler):
    space = {
        "x": {"type": "int", "low": 0, "high": 1},
        "y": {"type": "categorical", "choices": ["a", "b", "c"]},
    }
    fleet.submit(sampler={"type": sampler, "seed": 3}, space=space, trials=50)

    def work_until(count):
        with fleet.service() as service:

            def enough():
                work(fleet, "s")
                status = service.status("s")
                return status.is_over or status.num_ended >= count

            turn_until(service, enough, "it is worked on")
            return service.status("s")

    work_until(2)  # a restart must not begin another sequence
    status = work_until(50)
    points = {(trial.params["x"], trial.params["y"]) for trial in fleet.stored()}
    assert status.state == "finished"
    assert len(points) == 6, "each point was tried"
    if sampler == "grid":
        assert len(fleet.stored()) == 6, "and none twice"
    assert work_until(50).state == "finished", "it stays so"
    alone = fleet.settings.model_copy(update={"redis_url": None})
    assert StudyHandle("s", alone).status().state == "finished"


def test_a_study_that_was_stopped_is_asked_for_nothing_when_it_is_opened_again(fleet):
    fleet.submit(trials=4)
    Studies(fleet.client).ask_to_stop("s")
    with fleet.service() as service:
        turn_until(service, lambda: service.status("s") is not None, "it is opened")
        for _ in range(3):
            service.turn()
    assert fleet.stored() == []


def test_what_waits_in_a_paused_study_keeps_no_slot_from_another(fleet):
    put(fleet, "paused", trials=9)
    studies = Studies(fleet.client)
    with Service(fleet.settings) as service:
        turn_until(service, lambda: len(studies.leases("paused").queued()) == 3, "it has all")
        studies.want("paused", Wish.PAUSE)
        put(fleet, "other", trials=9)
        turn_until(service, lambda: len(studies.leases("other").queued()) == 3, "the other has")


def test_a_study_that_takes_processes_down_pays_for_the_slots_that_start_anew(fleet):
    """It had all slots to itself: its trials use no time before they die."""
    leases = {name: Studies(fleet.client).leases(name) for name in ("crashes", "works")}
    lost, done = [], []

    def run_what_waits():
        for number in leases["crashes"].queued():
            grant = leases["crashes"].claim(number, "hand", UNRENEWED_SECONDS)
            if isinstance(grant, Grant):  # and none that waits for its next attempt
                told = Result(error="its process died")
                leases["crashes"].fail(number, grant.token, told, 10, 600.0, Charge.LOSS)
                lost.append(number)
        for number in leases["works"].queued():
            token = leases["works"].claim(number, "hand", UNRENEWED_SECONDS).token
            ended = Result(values=[1.0], busy_seconds=1.0)
            leases["works"].commit(number, token, TrialState.COMPLETE, ended)
            done.append(number)
        return len(done) >= 12

    for name in leases:
        put(fleet, name, trials=40)
    with Service(fleet.settings) as service:
        turn_until(service, run_what_waits, "the one that works has had its part")
        assert 1 <= len(lost) <= 8


def test_an_end_that_a_database_took_and_did_not_answer_for_is_counted(
    fleet, tmp_path, monkeypatch
):
    fleet.settings = fleet.settings.model_copy(update={"storage": f"sqlite:///{tmp_path}/s.db"})
    put(fleet, "s", trials=2)
    tell, broken = DrivenStudy.tell, []

    def tell_and_break(study, *arguments):
        tell(study, *arguments)
        if not broken:
            broken.append(study.name)
            study.tally.open.add(arguments[0])  # as if this process had not heard of it
            study.tally.ended.clear()
            raise StorageInternalError("the connection was lost after the commit")

    monkeypatch.setattr(DrivenStudy, "tell", tell_and_break)
    with Service(fleet.settings) as service:

        def is_over():
            work(fleet, "s")
            return Studies(fleet.client).facts.get("s", "over") is not None

        turn_until(service, is_over, "it is over all the same")
    assert broken == ["s"]
    status = StudyHandle("s", fleet.settings).status()
    assert (status.trials["complete"], status.trials["queued"]) == (2, 0)
