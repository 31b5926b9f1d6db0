"""Devices that break, processes that are sick, and objectives that are simply wrong."""

from __future__ import annotations

import pytest

from orchestrator.views.other_code import is_without_its_code
from workers.coordination import keys
from workers.coordination.device_marks import DeviceMarks, Victim
from workers.coordination.grants import Grant, Refusal
from workers.coordination.studies import Studies
from workers.processes.registry import ProcessEntry
from workers.processes.slots import has_slot_beside, has_slot_elsewhere, num_slots, refusing_slots
from workers.protocol.messages import Result
from workers.protocol.spec import StudySpec
from workers.protocol.states import Charge, TrialState
from workers.trials.failure_streak import FailureStreak


@pytest.fixture
def studies(client):
    made = Studies(client)
    made.submit(StudySpec(name="s"))
    return made


@pytest.fixture
def leases(studies):
    return studies.leases("s")


def lose(leases, number, device, **options):
    grant = leases.claim(number, "owner", 45.0, device=device, **options)
    assert isinstance(grant, Grant)
    leases.fail(number, grant.token, Result(error="e"), 10, 0.0, Charge.LOSS, device)


def end(leases, number, device, state=TrialState.COMPLETE):
    grant = leases.claim(number, "owner", 45.0, device=device)
    assert leases.commit(number, grant.token, state, Result(values=[1.0])) == "OK"


def test_a_trial_is_not_offered_again_to_a_device_that_broke_under_it(leases):
    leases.enqueue(0, {})
    lose(leases, 0, "a")
    assert leases.claim(0, "owner", 45.0, device="a") == Refusal("ELSEWHERE")
    assert leases.record(0).attempt == 1, "it is not counted as an attempt"
    lose(leases, 0, "b")
    assert leases.record(0).lost_on == {"a", "b"}
    for device in ("a", "b"):
        assert leases.claim(0, "owner", 45.0, device=device) == Refusal("ELSEWHERE")
    lose(leases, 0, "a", insists=True)
    end(leases, 0, "c")
    assert leases.record(0).device == "c"


def test_a_trial_keeps_the_processes_in_which_it_failed(leases):
    leases.enqueue(0, {})
    for owner in ("a", "b"):
        grant = leases.claim(0, owner, 45.0)
        leases.fail(0, grant.token, Result(error="e"), 10, 0.0)
    lose(leases, 0, "gpu")
    assert leases.record(0).failed_in == {"a", "b"}, "a loss is no failure of its own"


def test_two_trials_that_succeeded_elsewhere_speak_against_a_device(client, leases):
    marks = DeviceMarks(client, "a")
    for number in range(5):
        leases.enqueue(number, {})
        lose(leases, number, "a")
        marks.note(Victim("s", number))
    marks.note(Victim("s", 99))  # of which Redis knows nothing
    end(leases, 0, "b")
    grant = leases.claim(1, "owner", 45.0, device="b")
    leases.commit(1, grant.token, TrialState.FAILED, Result(error="here, too"))
    grant = leases.claim(2, "owner", 45.0, device="a", insists=True)
    leases.commit(2, grant.token, TrialState.COMPLETE, Result(values=[1.0]))
    assert marks.succeeded_elsewhere() == [Victim("s", 0)], (
        "the second failed there, too, and the third ended here"
    )
    end(leases, 3, "b", TrialState.PRUNED)
    assert marks.succeeded_elsewhere() == [Victim("s", 0), Victim("s", 3)]
    assert client.pttl(keys.device("a")) > 0
    marks.put_aside("why")
    assert DeviceMarks(client, "a").aside() == "why"
    marks.clear()
    assert (marks.victims(), marks.aside()) == ([], None)


def test_the_marks_of_a_device_stay_few(client):
    marks = DeviceMarks(client, "a")
    for number in range(100):
        marks.note(Victim("s", number))
        marks.note(Victim("s", number))
    assert marks.victims() == [Victim("s", number) for number in range(80, 100)]


def slot(pid, parent, device, aside=None, host="h"):
    facts = {"host": host, "boot_id": "b", "pid": pid, "start_ticks": 1}
    return ProcessEntry(identity=facts, kind="trial", parent=parent, device=device, aside=aside)


def main(pid, slots, queues=("default",), host="h", **facts):
    identity = {"host": host, "boot_id": "b", "pid": pid, "start_ticks": 1}
    return ProcessEntry(identity=identity, kind="main", slots=slots, queues=queues, **facts)


def test_another_slot_is_one_of_the_queue_that_is_not_put_aside_or_one_that_starts():
    both = [main(1, 2), slot(2, 1, "a"), slot(3, 1, "b")]
    assert has_slot_elsewhere("default", both, {"a"})
    assert not has_slot_elsewhere("default", both, {"a", "b"})
    assert not has_slot_elsewhere("other", both, {"a"})
    assert has_slot_elsewhere("default", both[:2], {"a", "b"}), "its process is being replaced"
    refused = [main(1, 2), slot(2, 1, "a"), slot(3, 1, "b", aside="broken")]
    assert not has_slot_elsewhere("default", refused, {"a"})
    assert (num_slots("default", refused), num_slots("other", refused)) == (1, 0)
    assert [entry.identity.pid for entry in refusing_slots("default", refused)] == [3]
    elsewhere = [*refused, main(1, 1, host="other"), slot(2, 1, "c", host="other")]
    assert has_slot_elsewhere("default", elsewhere, {"a"})
    draining = [*refused, main(7, 4, is_draining=True)]
    assert not has_slot_elsewhere("default", draining, {"a"})


def test_two_workers_of_one_host_may_differ_in_what_they_take():
    """Both have the device of a slot without a GPU."""
    entries = [main(1, 1), slot(2, 1, "h/cpu-0"), main(3, 1), slot(4, 3, "h/cpu-0")]
    assert has_slot_beside("default", entries, {entries[1].identity})
    assert not has_slot_beside("default", entries, {each.identity for each in entries})
    other = {"other_code": {"s": "0" * 64}}
    entries[1] = entries[1].model_copy(update=other)
    code = {"must_match": True, "sha256": "1" * 64}
    spec = StudySpec(name="s", objective="a:b", code=code)
    assert not is_without_its_code(spec, entries)
    entries[3] = entries[3].model_copy(update=other)
    assert is_without_its_code(spec, entries)


def publish(studies, complete):
    studies.facts.publish("s", {"status": {"trials": {"complete": complete, "pruned": 0}}})


def test_a_process_is_doubted_where_others_succeed_and_only_there(studies):
    streak = FailureStreak(studies)
    for number in range(9):
        assert streak.add("s", number, is_repeated=False) is None
        assert streak.add("s", number, is_repeated=True) is None, "a study that is simply wrong"
    assert streak.has("s", 8)
    assert not streak.has("s", 9)
    streak.end()
    assert not streak.has("s", 8), "the process is as good as any"
    publish(studies, 5)
    for number in (20, 21, 22):
        assert streak.add("s", number, is_repeated=False) is None, "others succeeded before"
    publish(studies, 6)
    assert "4 trials in a row" in streak.add("s", 23, is_repeated=False)
    assert streak.add("s", 23, is_repeated=False) is None, "once is enough for a trial"


def test_the_same_failure_twice_in_one_process_is_for_a_fresh_one_to_judge(studies):
    publish(studies, 1)
    streak = FailureStreak(studies)
    assert streak.add("s", 0, is_repeated=False) is None
    assert "twice in the same way" in streak.add("s", 0, is_repeated=True)
    fresh = FailureStreak(studies)
    assert fresh.add("s", 0, is_repeated=True) is None
    streak.add("s", 1, is_repeated=False)
    streak.end()
    assert streak.add("s", 1, is_repeated=True) is None, "the process was well in between"
