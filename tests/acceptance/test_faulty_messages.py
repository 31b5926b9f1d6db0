"""Messages that are lost, doubled and reordered; orchestrators, reapers and cleaners in twos."""

from __future__ import annotations

import os
import random
import signal
import threading

import psutil
import pytest
from waiting import wait_until

from orchestrator.storage.opening import StudyStorage
from workers.coordination import keys
from workers.coordination.grants import Grant
from workers.coordination.hints import Hints


def enqueue(fleet, trials):
    """Trials that wait, with the hints that were sent for them still in Celery's queue."""
    fleet.submit(trials)
    fleet.pretend_slots(trials)
    fleet.serve()
    wait_until(lambda: len(fleet.leases.queued()) == trials, "they are enqueued")
    queue = f"{keys.CELERY_PREFIX}default"
    wait_until(lambda: fleet.client.llen(queue) == trials, "they are announced")
    return queue


@pytest.mark.fault(24)
def test_a_message_that_was_lost_is_sent_again(fleet):
    queue = enqueue(fleet, 2)
    fleet.client.delete(queue)
    fleet.worker()
    fleet.await_over()
    fleet.assert_sound(2, attempts={0: 1, 1: 1})
    assert {event["trial"] for event in fleet.events("announced_again")} == {0, 1}


@pytest.mark.fault(25)
def test_messages_that_come_ten_times_and_in_any_order_make_one_attempt_each(fleet):
    enqueue(fleet, 3)
    numbers = [number for number in range(3) for _ in range(10)]
    random.Random(5).shuffle(numbers)
    hints = Hints(fleet.redis.url)
    for number in numbers:
        hints.send(fleet.study, number, fleet.leases.epoch, "default")
    hints.close()
    fleet.worker(slots=2)
    fleet.await_over()
    fleet.assert_sound(3, attempts={0: 1, 1: 1, 2: 1})
    assert len(fleet.notes("starts")) == 3
    refused = len(numbers) + len(fleet.events("announced_again"))  # while one waited for long
    wait_until(lambda: len(fleet.events("not_claimed")) == refused, "so are all others")


@pytest.mark.fault(26)
def test_of_two_cleaners_and_two_orchestrators_one_acts(fleet):
    fleet.order("kill", step=8)
    fleet.submit(2)
    fleet.serve()
    fleet.serve()
    fleet.worker()
    fleet.worker()
    fleet.await_over()
    fleet.assert_sound(2, attempts={0: 2, 1: 1})
    assert len(fleet.events("study_driven")) == 1
    ended = [event["ended"] for event in fleet.events("reaped")]
    assert ended.count("REQUEUED") == 1
    assert set(ended) <= {"REQUEUED", "SKIP"}


@pytest.mark.fault(26)
def test_of_two_reapers_one_reaps(fleet):
    fleet.submit(1)
    leases = fleet.leases
    leases.enqueue(0, {})
    for losses in range(1, 30):
        grant = leases.claim(0, "owner", 0.0)
        assert isinstance(grant, Grant)
        start, answers = threading.Barrier(2), []

        def reap(start=start, answers=answers):
            start.wait()
            answers.append(leases.reap(0, "gone", most=100, backoff_seconds=0.0))

        threads = [threading.Thread(target=reap) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == ["REQUEUED", "SKIP"]
        assert leases.record(0).losses == losses
    fleet.client.flushall()


@pytest.mark.fault(26)
def test_an_orchestrator_that_was_stopped_writes_nothing_when_it_comes_back(fleet):
    """On a database, which takes writes of both; a journal file has a lock of its own."""
    database = f"sqlite:///{fleet.folder}/studies.db"
    fleet.settings = fleet.settings.model_copy(update={"storage": database})
    fleet.order("stay until go")
    fleet.submit(2)
    first = fleet.serve()
    fleet.worker()
    fleet.await_note("stay until go")
    os.kill(first.pid, signal.SIGSTOP)
    fleet.serve()
    wait_until(lambda: len(fleet.events("study_driven")) == 2, "another takes over")
    os.kill(first.pid, signal.SIGCONT)
    wait_until(lambda: fleet.events("study_taken_over"), "the first one leaves it")
    fleet.go()
    fleet.await_over()
    assert [trial.state.name for trial in fleet.trials()] == ["COMPLETE"] * 2
    storage = StudyStorage.open(database)
    assert storage.count_trials(fleet.study) == 2, "none was asked for twice"
    storage.close()


STOPS_IN_AN_ASK = """
import os, signal, sys, optuna
ask, asked = optuna.Study.ask, []
def stop_and_ask(self, *args, **options):
    asked.append(1)
    if len(asked) == 2:
        os.kill(os.getpid(), signal.SIGSTOP)  # it holds the right, and has counted the trials
    return ask(self, *args, **options)
optuna.Study.ask = stop_and_ask
"""


@pytest.mark.fault(26)
@pytest.mark.parametrize(
    "storage",
    # of a database, the test before tells as much of one that is suspended between two asks
    ["journal", pytest.param("sqlite", marks=pytest.mark.long)],
)
def test_an_orchestrator_that_is_suspended_in_an_ask_does_not_ask_beside_the_next(fleet, storage):
    if storage == "sqlite":
        database = f"sqlite:///{fleet.folder}/studies.db"
        fleet.settings = fleet.settings.model_copy(update={"storage": database})
    fleet.submit(5)
    fleet.pretend_slots(3)
    first = fleet.serve(STOPS_IN_AN_ASK + SERVE)
    wait_until(lambda: psutil.Process(first.pid).status() == "stopped", "it is suspended")
    fleet.worker()
    fleet.serve()
    if storage == "sqlite":
        fleet.await_over()
        os.kill(first.pid, signal.SIGCONT)
        wait_until(lambda: fleet.events("study_taken_over"), "the first one leaves it")
    else:  # its lock is held by whoever is suspended: the other one waits, and says so
        wait_until(lambda: "another orchestrator" in str(fleet.events("study_stalled")), "it waits")
        os.kill(first.pid, signal.SIGCONT)
        fleet.await_over()
    assert [trial.state.name for trial in fleet.trials()] == ["COMPLETE"] * 5


DIES_AFTER_TELL = """
import os, signal, sys
from orchestrator.driving.collector import Collector
collect = Collector.collect
def collect_and_die(self, entries):
    collect(self, entries)
    if any(entry.kind == "terminal" for entry in entries):
        os.kill(os.getpid(), signal.SIGKILL)
Collector.collect = collect_and_die
"""

DIES_AFTER_ASK = """
import os, signal, sys
from workers.coordination.leases import TrialLeases
TrialLeases.enqueue_all = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""

SERVE = """
from orchestrator.cli import main
sys.argv = ["trialfleet", "serve"]
main()
"""


@pytest.mark.fault(27)
@pytest.mark.parametrize("program", [DIES_AFTER_TELL, DIES_AFTER_ASK], ids=["told", "asked"])
def test_an_orchestrator_killed_between_two_writes_is_continued_by_the_next(fleet, program):
    fleet.submit(2)
    dying = fleet.serve(program + SERVE)
    fleet.worker()
    assert dying.wait(60) == -signal.SIGKILL
    if program is DIES_AFTER_TELL:
        assert fleet.client.xlen(keys.inbox(fleet.study)) > 0, "it was not acknowledged"
        assert fleet.trials()[0].state.is_finished()
    else:
        assert fleet.trials(), "some were asked for"
        assert not fleet.leases.queued()
    fleet.serve()
    fleet.await_over()
    fleet.assert_sound(2, attempts={0: 1, 1: 1})
