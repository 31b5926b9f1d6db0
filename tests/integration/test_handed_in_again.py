"""A study that is handed in again while it is known, on a real Redis."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hand_fleet import Fleet, turn_until

from orchestrator.submission import preflight
from orchestrator.submission import submit as submission
from orchestrator.submission.submit import submit
from workers.coordination.studies import Studies
from workers.protocol.states import Wish
from workers.protocol.study_options import ShareSpec, StopSpec

#: What looking at the objective came to.
FOUND = {"problem": None}


@pytest.fixture
def fleet(client, settings, tmp_path):
    return Fleet(client, settings, tmp_path)


def test_a_study_that_is_moved_to_another_queue_goes_on_there(fleet):
    """The worker reads `default` alone."""
    handle = fleet.submit(trials=2, resources={"queue": "big"})
    with fleet.service() as service:
        turn_until(service, lambda: service.status("s") is not None, "it is driven")
        assert not fleet.stored(), "no worker would take a trial"
        fleet.submit(trials=2)
        turn_until(service, lambda: len(fleet.leases.queued()) == 2, "it goes on")
        sent = []
        service._hints.send = lambda _study, number, _epoch, queue, *_: sent.append((number, queue))
        fleet.submit(trials=2, resources={"queue": "big"})
        turn_until(service, lambda: len(sent) == 2, "what waits is announced there")
        assert sorted(sent) == [(0, "big"), (1, "big")]
        for number in (0, 1):
            fleet.commit(number, 0.5)
        turn_until(service, lambda: handle.status().is_over, "it is over")


def hand_in(fleet, **fields):
    """Submit the study again, with other settings; what people were told."""
    told = []
    submit(fleet.spec.model_copy(update=fields), fleet.settings, tell=told.append)
    return "\n".join(told)


@pytest.fixture
def known(fleet, monkeypatch):
    handle = fleet.submit(trials=40)
    monkeypatch.setattr(preflight, "_import_elsewhere", lambda *_: FOUND)  # it was imported before
    return handle


def test_a_study_that_is_handed_in_again_stays_paused_and_says_so(fleet, known):
    known.pause(now=True)
    told = hand_in(fleet, share=ShareSpec(weight=2.0))
    assert "share.weight = 2.0 (it was 1.0)" in told
    assert "paused, and stays so: `trialfleet resume s`" in told
    studies = Studies(fleet.client)
    assert (studies.wish("s"), studies.spec("s").share.weight) == (Wish.PAUSE_NOW, 2.0)
    known.resume()
    assert hand_in(fleet, share=ShareSpec(weight=2.0)) == "", "nothing is other"
    known.stop()
    assert "was stopped, and goes on by this" in hand_in(fleet, share=ShareSpec(weight=2.0))
    assert studies.wish("s") is Wish.RUN


def test_what_becomes_less_is_said(fleet, known):
    known.extend(trials=80)
    assert "trials = 40 (it was 80)" in hand_in(fleet)
    assert known.spec().trials == 40


def test_the_second_of_two_commands_sees_what_the_first_has_changed(fleet, known, monkeypatch):
    """The extension comes between the look at the study and the writing of it."""
    compare, extended = submission.changes_told, []

    def compare_slowly(*arguments):
        if not extended:
            extended.append(known.extend(trials=80))
        return compare(*arguments)

    monkeypatch.setattr(submission, "changes_told", compare_slowly)
    told = hand_in(fleet, share=ShareSpec(weight=2.0))
    assert "trials = 40 (it was 80)" in told, "it is not lost unsaid"
    assert "share.weight" in told


def test_many_hands_at_once_leave_one_whole_study(fleet, known):
    def share(weight):
        hand_in(fleet, share=ShareSpec(weight=float(weight)))

    def lengthen(count):
        known.extend(trials=count)

    wanted = [(share, 2), (share, 3), (lengthen, 60), (lengthen, 50)]
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask, value) for ask, value in wanted]
    failed = [answer.exception() for answer in answers if answer.exception()]
    assert all("less than it has" in str(error) for error in failed)
    assert known.spec().share.weight in {2.0, 3.0}
    assert Studies(fleet.client).submitted("s").spec == known.spec()


def test_more_trials_past_a_target_are_said_to_be_of_no_use(fleet, known, monkeypatch):
    hand_in(fleet, stop=StopSpec(target=0.6))
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.is_queued(0), "it has begun")
        fleet.commit(0, 0.5)
        turn_until(service, lambda: known.status().is_over, "its target is reached")
    told = hand_in(fleet, stop=StopSpec(target=0.6), trials=60)
    assert "no further trial begins, since trial 0 reached the study's target" in told
    assert "no further" not in hand_in(fleet, stop=StopSpec(target=0.1), trials=60)
    again = hand_in(fleet, stop=StopSpec(target=0.1), trials=70)
    assert "no further" not in again, "what is shown is still of the target before"
