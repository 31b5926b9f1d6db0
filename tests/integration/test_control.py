"""What people ask of a live study, on a real Redis, with the test in the part of the workers."""

from __future__ import annotations

import itertools
import threading

import pytest
from hand_fleet import Fleet, is_over, look_around, turn_until

from orchestrator.driving.service import Service
from orchestrator.handle import StudyHandle
from workers.coordination import keys
from workers.coordination.grants import Grant, Refusal
from workers.coordination.studies import Studies
from workers.coordination.study_facts import StudyFacts
from workers.protocol.errors import InvalidInputError, StudyTakenOverError
from workers.protocol.messages import Result
from workers.protocol.states import Command, TrialState, Wish


@pytest.fixture
def fleet(client, settings, tmp_path):
    return Fleet(client, settings, tmp_path)


#: what is wanted -> what may be asked then
ALLOWED = {
    Wish.RUN: set(Wish),
    Wish.PAUSE: set(Wish),
    Wish.PAUSE_NOW: set(Wish),
    Wish.STOP: {Wish.RUN, Wish.STOP, Wish.CANCEL},
    Wish.CANCEL: {Wish.RUN, Wish.CANCEL},
}


def test_what_is_asked_follows_upon_what_was_asked_before(fleet):
    fleet.submit()
    studies = Studies(fleet.client)
    for before, wish in itertools.product(Wish, Wish):
        studies.want("s", Wish.RUN)
        studies.want("s", before)
        answer = studies.want("s", wish)
        is_allowed = wish in ALLOWED[before]
        assert answer == ("OK" if is_allowed else "REFUSED", before), (before, wish)
        assert studies.wish("s") is (wish if is_allowed else before)
        assert studies.want("s", wish).status == answer.status, "asked twice is asked once"


def test_an_orchestrator_that_does_not_drive_a_study_any_more_cannot_stop_it(fleet):
    fleet.submit()
    latter = Studies(fleet.client, "latter")
    fleet.client.set(keys.lead("s"), "latter")
    with pytest.raises(StudyTakenOverError):
        Studies(fleet.client, "former").stop("s")
    assert latter.wish("s") is Wish.RUN
    latter.stop("s")
    assert latter.wish("s") is Wish.STOP
    latter.want("s", Wish.CANCEL)
    latter.stop("s")
    assert latter.wish("s") is Wish.CANCEL, "an end that was asked for stands"


def test_a_command_says_what_was_asked_before_and_the_way_out(fleet):
    handle = fleet.submit()
    assert handle.cancel().state == "cancelling"
    for ask, word in ((handle.pause, "pause"), (handle.stop, "stop")):
        with pytest.raises(InvalidInputError, match=f"was cancelled.*{word}.*trialfleet resume s"):
            ask()
    with pytest.raises(InvalidInputError, match="was cancelled.*trialfleet resume s"):
        handle.extend(trials=9)
    assert handle.resume().state == "running"
    with pytest.raises(InvalidInputError, match="did you mean 's'"):
        StudyHandle("ss", fleet.settings).pause()


def test_what_is_wanted_decides_who_may_have_a_trial_and_what_its_holder_is_told(fleet):
    fleet.submit()
    leases, studies = fleet.leases, Studies(fleet.client)
    told = {
        Wish.RUN: Command.NONE,
        Wish.PAUSE: Command.PAUSE,
        Wish.PAUSE_NOW: Command.PAUSE_NOW,
        Wish.STOP: Command.NONE,
        Wish.CANCEL: Command.CANCEL,
    }
    for number, (wish, command) in enumerate(told.items()):
        studies.want("s", Wish.RUN)
        leases.enqueue(number, {})
        held = fleet.claim(number)
        leases.enqueue(10 + number, {})
        leases.enqueue(20 + number, {})
        leases.release(20 + number, fleet.claim(20 + number).token)
        studies.want("s", wish)
        assert leases.renew(number, held.token, 45.0, 1) is command
        fresh, begun = (leases.claim(tens + number, "hand", 45.0) for tens in (10, 20))
        assert isinstance(fresh, Grant) == (wish is Wish.RUN)
        assert isinstance(begun, Grant) == (not wish.is_pause and wish is not Wish.CANCEL)
        if wish is not Wish.RUN:
            assert fresh == Refusal("WITHHELD")
            assert leases.is_queued(10 + number)
        if wish.is_pause:
            studies.want("s", Wish.RUN)
            assert leases.renew(number, held.token, 45.0, 1) is Command.NONE, "it may go on"


def test_a_paused_study_stands_still_and_goes_on_where_it_was(fleet):
    handle = fleet.submit(trials=5)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        running = fleet.claim(0)
        assert handle.pause().state == "paused"
        assert handle.pause().state == "paused"
        turn_until(service, lambda: fleet.statuses[-1].state == "paused", "it is taken")
        fleet.leases.commit(
            0, running.token, TrialState.COMPLETE, Result(values=[0.5], busy_seconds=60.0)
        )
        turn_until(service, lambda: handle.status().trials["complete"] == 1, "it is told")
        seconds = handle.status().wall_seconds
        look_around(service)
        assert len(fleet.stored()) == 3, "nothing is asked for"
        assert handle.status().wall_seconds - seconds < 0.1, "its clock stands"
        assert (handle.status().state, handle.status().wish) == ("paused", "pause")
    with fleet.service() as service:
        look_around(service)
        assert len(fleet.stored()) == 3, "another orchestrator leaves it so"
        sent = []
        service._hints.send = lambda _study, number, *_: sent.append(number)
        assert handle.resume().state == "running"
        turn_until(service, lambda: len(fleet.stored()) == 4, "it goes on")
        assert {1, 2} <= set(sent), "what waits is announced again"
        for number in range(1, 5):
            turn_until(service, lambda n=number: fleet.leases.is_queued(n), "it is in flight")
            fleet.commit(number, 0.5)
        turn_until(service, lambda: service.status("s").is_over, "it is over")
    with pytest.raises(InvalidInputError, match=r"over \(finished, 5 of 5.*trialfleet extend s"):
        handle.resume()
    assert handle.pause().state == "finished", "there is nothing to pause"
    assert Studies(fleet.client).wish("s") is Wish.RUN


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_cancelled_study_ends_with_what_is_there(fleet, has_begun):
    handle = fleet.submit(trials=9)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        fleet.commit(0, 0.5)
        running = fleet.claim(1)
        if has_begun:
            fleet.leases.release(2, fleet.claim(2).token)
        assert handle.cancel().state == "cancelling"
        turn_until(service, lambda: not fleet.leases.queued(), "what waits is cancelled")
        assert handle.status().state == "cancelling", "one still runs"
        ended = Result(user_attrs={"kept": 7})
        fleet.leases.commit(1, running.token, TrialState.CANCELLED, ended)
        turn_until(service, lambda: service.status("s").is_over, "it is over")
    status = handle.cancel()
    assert status.state == "cancelled"
    assert status.trials["complete"] == 1
    assert fleet.stored()[1].user_attrs["kept"] == 7
    reason = fleet.stored()[2].user_attrs["trialfleet:error"]
    assert ("for another attempt" if has_begun else "before it began") in reason
    assert StudyHandle("s", fleet.settings).status().best.value == 0.5


def test_a_cancelled_study_that_is_resumed_runs_all_that_had_not_begun(fleet):
    handle = fleet.submit(trials=5)
    with Service(fleet.settings) as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        handle.cancel()
        turn_until(service, lambda: handle.status().is_over, "it is over")
        withdrawn = [trial.params for trial in fleet.stored()]
        assert handle.resume().state == "running"
        turn_until(service, lambda: is_over(fleet, "s"), "all five have run")
        again = fleet.stored()[len(withdrawn) :]
        assert [trial.state.name for trial in again] == ["COMPLETE"] * 5
        assert [trial.params for trial in again][: len(withdrawn)] == withdrawn
        assert handle.status().wanted == 5 + len(withdrawn), "those that were cancelled are told"


LAST_WORDS = {
    "stopped, and resumed": (Wish.STOP, lambda handle: handle.resume()),
    "cancelled, and resumed": (Wish.CANCEL, lambda handle: handle.resume()),
    "extended": (Wish.RUN, lambda handle: handle.extend(trials=9)),
}


@pytest.mark.parametrize("said", LAST_WORDS)
def test_what_is_asked_while_the_end_of_a_study_is_published_has_it_go_on(fleet, monkeypatch, said):
    wish, ask = LAST_WORDS[said]
    handle = fleet.submit(trials=3 if wish is Wish.RUN else 9)
    publish, asked = StudyFacts.publish_end, []

    def publish_late(self, name, facts, over, revision):
        if over is not None and not asked:
            asked.append(ask(handle))
        return publish(self, name, facts, over, revision)

    monkeypatch.setattr(StudyFacts, "publish_end", publish_late)
    with Service(fleet.settings) as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "they are in flight")
        fleet.commit(0, 0.5)
        Studies(fleet.client).want("s", wish)
        if wish is Wish.RUN:
            fleet.commit(1, 0.5)
            fleet.commit(2, 0.5)
        turn_until(service, lambda: asked, "its end is published")
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "it goes on")
        assert not handle.status().is_over
        assert not service.is_done("s")


@pytest.mark.parametrize(("wish", "state"), [(Wish.PAUSE, "paused"), (Wish.CANCEL, "cancelled")])
@pytest.mark.parametrize("by", ["this orchestrator", "the next one"])
def test_what_is_wanted_outlives_a_redis_that_loses_its_data(fleet, wish, state, by):
    handle = fleet.submit(trials=5)
    with Service(fleet.settings) as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 3, "three are in flight")
        fleet.claim(0)
        Studies(fleet.client).want("s", wish)
        turn_until(service, lambda: service.status("s").wish is wish, "it is taken")
        if by == "this orchestrator":
            fleet.client.flushall()
            turn_until(service, lambda: Studies(fleet.client).exists("s"), "it is there again")
            turn_until(service, lambda: handle.status().state == state, "it stays so")
            look_around(service)
    if by == "the next one":
        fleet.client.flushall()
    fleet.pretend_worker()
    with Service(fleet.settings) as service:
        look_around(service)
        assert handle.status().state == state
        assert len(fleet.stored()) == 3


def test_a_study_is_extended_by_several_people_at_once_and_goes_on(fleet):
    handle = fleet.submit(trials=1, timeout=60.0)
    with Service(fleet.settings) as service:
        turn_until(service, fleet.leases.queued, "it is in flight")
        fleet.commit(0, 0.5)
        turn_until(service, lambda: handle.status().is_over, "it is over")
        people = [
            threading.Thread(target=handle.extend, kwargs={"trials": 3}),
            threading.Thread(target=handle.extend, kwargs={"timeout": "2h"}),
        ]
        for each in people:
            each.start()
        for each in people:
            each.join()
        spec = Studies(fleet.client).spec("s")
        assert (spec.trials, spec.timeout) == (3, 7200.0)
        turn_until(service, lambda: len(fleet.stored()) == 3, "it goes on")


def test_what_a_study_was_extended_by_is_seen_at_once(fleet):
    handle = fleet.submit(trials=1, timeout=60.0, sampler={"type": "random"})
    handle.enqueue({})
    with Service(fleet.settings) as service:
        turn_until(service, lambda: len(fleet.stored()) == 2, "both are in flight")
        turn_until(service, lambda: handle.status().wanted == 2, "its status was shown")
    for trials in (5, 7):  # nobody drives it, and what was shown is all that there is
        handle.extend(trials=trials, timeout="2h")
        status = handle.status()
        assert (status.wanted, status.given) == (trials + 1, 1)
        assert status.budgets["trials"].allowed == trials
        assert status.budgets["wall_seconds"].allowed == 7200.0


def test_what_is_ordered_while_nobody_drives_the_study_is_told(fleet):
    handle = fleet.submit(trials=1)

    def told():
        return [each for each in handle.status().waits_for if "enqueue" in each]

    assert told() == []
    handle.enqueue({"x": 0.25}, {"x": 0.5})
    assert told() == [
        "what was ordered (`enqueue`, `retry`) waits for it, and is not counted as trials yet"
    ]
    with Service(fleet.settings) as service:
        turn_until(service, lambda: len(fleet.stored()) == 3, "they are in flight")
        turn_until(service, lambda: told() == [], "they are counted")
        turn_until(service, lambda: handle.status().given == 2, "as given")
    assert told() == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "by what"),
        ({"trials": 3}, "trials = 3 is less than it has, 4.*trialfleet stop s"),
        ({"trials": 10.5}, "trials"),
        ({"timeout": "soon"}, "'soon' is no duration"),
        ({"timeout": 3600.0}, "no timeout"),
        ({"trials": float("nan")}, "trials = nan"),
    ],
)
def test_an_extension_that_is_none_is_refused_and_changes_nothing(fleet, given, message):
    handle = fleet.submit(trials=4)
    submitted = Studies(fleet.client).spec("s")
    with pytest.raises(InvalidInputError, match=message):
        handle.extend(**given)
    assert Studies(fleet.client).spec("s") == submitted
