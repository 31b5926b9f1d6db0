"""A trial's record of which somebody wrote one field wrong: the trial alone is seen to."""

from __future__ import annotations

import pytest
from hand_fleet import Fleet, turn_until, work

from workers.coordination import keys
from workers.coordination.grants import Grant, Refusal
from workers.coordination.trial_record import CheckpointRef, TrialRecord
from workers.protocol.messages import Result

#: Fields of a record, with what no release writes there.
BAD = {
    "param:x": "{",
    "state": "BUSY",
    "token": "7.5",
    "attempt": "",
    "failures": "many",
    "losses": " 1",
    "not_before": "soon",
    "drawn": "[]",
    "error": "not JSON",
    "rung": "-",
    "step": "nan",
    "gpu_ms": "1000000000000000000",  # more than any release counts to
    "reported_step": "one",
    "checkpoint": "/somewhere",  # and nothing of its step
}


@pytest.fixture
def fleet(client, settings, tmp_path):
    return Fleet(client, settings.model_copy(update={"time_scale": 0.02}), tmp_path)


@pytest.mark.parametrize("name", BAD)
def test_an_error_names_the_field_and_what_it_holds(fleet, name):
    fleet.submit()
    fleet.leases.enqueue(0, {"x": 0.5})
    fields = fleet.client.hgetall(keys.trial("s", 0)) | {name: BAD[name]}
    named = "checkpoint_step is missing" if name == "checkpoint" else f"^{name} = {BAD[name]!r} "
    with pytest.raises(ValueError, match=named.replace("[", r"\[").replace("{", r"\{")):
        TrialRecord.parse(fields)


@pytest.mark.parametrize("name", [*BAD, "deadline"])
@pytest.mark.parametrize("is_held", [False, True])
def test_nobody_gets_a_trial_whose_record_cannot_be_read(fleet, name, is_held):
    fleet.submit()
    fleet.leases.enqueue(0, {"x": 0.5})
    if is_held:
        fleet.claim(0)
    fleet.client.hset(keys.trial("s", 0), name, BAD.get(name, "none"))
    answer = fleet.leases.claim(0, "hand", 45.0)
    # those two are written by each claim, which reads nothing of them
    is_granted = name in {"step", "deadline"} and not is_held
    assert isinstance(answer, Grant if is_granted else Refusal)


@pytest.mark.parametrize("name", ["token", "attempt", "not_before"])
@pytest.mark.parametrize("value", ["-1", "0", "1" * 18, "1" * 19, "+1", "1.0", "", " 1", None])
def test_who_claims_and_who_writes_anew_find_the_same_records_unreadable(fleet, name, value):
    fleet.submit()
    fleet.leases.enqueue(0, {"x": 0.5})
    key = keys.trial("s", 0)
    if value is None:
        fleet.client.hdel(key, name)
    else:
        fleet.client.hset(key, name, value)
    is_readable = fleet.leases.unreadable(0) is None
    assert isinstance(fleet.leases.pause_seconds(0), float)
    answer = fleet.leases.claim(0, "hand", 45.0)
    if is_readable:
        assert isinstance(answer, Grant) or answer.reason == "NOT_YET"
    else:
        assert answer == Refusal("ALTERED")


def test_records_that_cannot_be_read_are_written_anew_and_nothing_stands_still(fleet):
    handle = fleet.submit(trials=len(BAD), sampler={"type": "random"})
    fleet.pretend_worker(slots=len(BAD))
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == len(BAD), "they are in flight")
    drawn = [trial.params for trial in fleet.stored()]
    for number, name in enumerate(BAD):
        fleet.client.hset(keys.trial("s", number), name, BAD[name])
    assert fleet.leases.claim(0, "hand", 45.0) == Refusal("ALTERED"), "nobody runs what it says"
    with fleet.service() as service:

        def is_over():
            work(fleet, "s")
            return service.status("s") is not None and service.status("s").is_over

        turn_until(service, is_over, "all are run")
    assert [trial.params for trial in fleet.stored()] == drawn, "as they were drawn"
    assert handle.status().trials["complete"] == len(BAD)
    assert any("written anew" in reason for reason in handle.status().set_aside)
    assert handle.status().losses == 0


def test_a_holder_keeps_a_record_that_cannot_be_read_and_the_next_one_has_its_history(fleet):
    fleet.submit(trials=2, sampler={"type": "random"})
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 2, "they are in flight")
    failed = fleet.claim(0).token
    # as it is written where another home is, or a store
    saved = CheckpointRef(3, f"/of/another/home/checkpoints/s/0/{failed}/step-3", "ab")
    assert fleet.leases.checkpoint(0, failed, saved) == "OK"
    fleet.leases.fail(0, failed, Result(error="E", busy_seconds=1.0), most=3, backoff_seconds=0.0)
    token = fleet.claim(0).token
    fleet.client.hset(keys.trial("s", 0), "checkpoint_step", "9" * 19)
    fleet.client.hset(keys.trial("s", 1), "rung", "-")
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.record(1), "the one that nobody holds is written")
        assert fleet.leases.record(0) is None, "and was looked at first"
        assert fleet.leases.renew(0, token, 0.001, 4) is not None
        turn_until(service, lambda: fleet.leases.record(0), "after its lease it is written, too")
    record = fleet.leases.record(0)
    assert (record.attempt, record.failures, record.losses) == (2, 1, 1)
    assert (record.checkpoint, record.token >= token) == (saved, True)
    assert sum(record.requeued.values()) == 2
    fleet.client.hset(keys.trial("s", 0), "not_before", "0")
    assert fleet.claim(0).record.checkpoint == saved


def test_why_records_were_written_anew_outlives_the_orchestrator(fleet):
    handle = fleet.submit(trials=2, sampler={"type": "random"})
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 2, "they are in flight")
    for number in (0, 1):
        fleet.client.hset(keys.trial("s", number), "rung", "-")
    with fleet.service() as service:
        turn_until(service, lambda: all(map(fleet.leases.record, (0, 1))), "they are written anew")
    # it may have left before it showed that
    with fleet.service() as service:
        turn_until(service, lambda: len(_written_anew(handle)) == 2, "the next one shows both")


def _written_anew(handle):
    return [reason for reason in handle.status().set_aside if "written anew" in reason]


def test_a_lease_that_cannot_be_reaped_is_over_all_the_same(fleet):
    fleet.submit(trials=2, sampler={"type": "random"})
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 2, "they are in flight")
        for number, name in enumerate(("losses", "state")):
            fleet.leases.claim(number, "hand", 0.001)
            fleet.client.hset(keys.trial("s", number), name, BAD[name])
        turn_until(service, lambda: len(fleet.leases.queued()) == 2, "both are written anew")
        assert [fleet.leases.record(number).attempt for number in (0, 1)] == [1, 1]
        assert fleet.leases.running() == {}
