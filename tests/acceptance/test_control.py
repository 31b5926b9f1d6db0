"""Studies that are paused and cancelled while real workers train, and killed meanwhile."""

from __future__ import annotations

import os
import signal
import time

import pytest
from fault_fleet import is_gone, tree_of
from offline_wandb import offline_runs
from waiting import wait_until

from orchestrator.handle import StudyHandle
from workers.protocol.states import TrialState


@pytest.fixture
def study(fleet):
    return StudyHandle("fault", fleet.settings)


def run(fleet, trials=1, slots=1, **fields):
    fleet.submit(trials, **fields)
    fleet.serve()
    return fleet.worker(slots)


def is_queued(fleet, number=0):
    return lambda: fleet.record(number).state is TrialState.QUEUED


def test_a_pause_reaches_a_training_and_nothing_is_lost_whoever_is_killed(fleet, study):
    fleet.order("stay until go", step=4)
    fleet.order("stay until go", attempt=2, step=7)
    worker = run(fleet)
    pid = fleet.await_note("stay until go").pid
    assert study.pause().state == "paused"
    assert fleet.await_note("drained").step == 4
    wait_until(is_queued(fleet), "it is given back")
    fleet.orchestrators[-1].kill()
    os.kill(pid, signal.SIGKILL)
    fleet.orchestrators[-1].wait()
    fleet.serve()
    fleet.go()
    wait_until(lambda: study.status().stalled is None and study.status().slots, "all are back")
    assert study.status().state == "paused"
    fleet.halt()
    study.resume()
    pid = fleet.await_note("stay until go", attempt=2).pid
    study.pause()
    os.kill(pid, signal.SIGKILL)
    wait_until(is_queued(fleet), "it is taken from the dead process")
    assert len(fleet.notes("starts")) == 2
    fleet.go()
    study.resume()
    fleet.await_over()
    fleet.assert_sound(attempts={0: 3})
    record = fleet.record()
    assert (record.failures, record.losses) == (0, int(pid in (e["died"] for e in died(fleet))))
    assert worker.poll() is None


def died(fleet):
    return [event for event in fleet.events("process_died") if event["trial"] is not None]


def test_who_never_asks_runs_to_its_end_in_a_pause_and_begins_again_in_one_that_is_pressing(
    fleet, study
):
    fleet.order("wait for go", number=0)
    fleet.order("wait for go", number=1)
    run(fleet, trials=2)
    pid = fleet.await_note("wait for go").pid
    study.pause()
    grace = fleet.settings.times.cancel_grace + 2 * fleet.settings.times.beat
    until = time.monotonic() + grace
    wait_until(lambda: time.monotonic() > until, "the grace is over")
    assert fleet.record().state is TrialState.RUNNING
    fleet.go()
    wait_until(is_queued(fleet), "it hears of the pause when it goes on")
    fleet.halt()
    study.resume()
    hung = wait_until(lambda: [n for n in fleet.notes("wait for go") if n.number == 1], "the other")
    assert hung[0].pid == pid, "the process was kept"
    study.pause(now=True)
    wait_until(is_gone(pid), "its process is ended")
    wait_until(is_queued(fleet, 1), "its trial is taken from it")
    assert not is_gone(tree_of(fleet.workers[0].pid)[0].pid)()
    fleet.go()
    study.resume()
    fleet.await_over()
    fleet.assert_sound(2)
    assert [fleet.record(number).losses for number in (0, 1)] == [0, 0]


def cancel_at(fleet, order):
    """Cancel the fleet's study when its trial does what it was ordered to; the trial's process."""
    study = StudyHandle(fleet.study, fleet.settings)
    pid = fleet.await_note(order).pid
    assert study.cancel().state == "cancelling"
    fleet.await_over()
    status = study.status()
    assert (status.state, status.trials["cancelled"]) == ("cancelled", sum(status.trials.values()))
    trial = fleet.trials()[0]
    assert trial.user_attrs["trialfleet:error"] == "the study was cancelled"
    assert trial.user_attrs["made"] == 3
    kept = fleet.settings.home / "studies" / fleet.study / "trials" / "0" / "result" / "made"
    wait_until(kept.exists, "its files are kept")
    assert study.cancel().state == "cancelled"
    return pid


def test_a_cancelled_trial_ends_as_such_and_what_it_made_is_kept(fleet):
    fleet.order("leave something", step=3)
    fleet.order("stay until go")
    worker = run(fleet, trials=5)
    cancel_at(fleet, "stay until go")
    fleet.order("wait for go")
    fleet.submit(5, name="stubborn")
    pid = cancel_at(fleet, "wait for go")
    wait_until(is_gone(pid), "its process is ended")
    assert worker.poll() is None


def test_a_cancelled_study_ends_though_the_holder_of_its_trial_is_killed(fleet, study):
    fleet.order("wait for go")
    run(fleet, trials=3)
    pid = fleet.await_note("wait for go").pid
    fleet.orchestrators[-1].kill()
    fleet.orchestrators[-1].wait()
    assert study.cancel().state == "cancelling"
    os.kill(pid, signal.SIGKILL)
    fleet.serve()
    fleet.await_over()
    assert study.status().state == "cancelled"
    assert len(fleet.notes("starts")) == 1


@pytest.mark.long
def test_the_wandb_run_of_a_trial_that_is_ended_by_force_is_ended(fleet, study):
    fleet.order("wait for go", step=4)
    run(fleet, wandb={"mode": "offline"})
    pid = fleet.await_note("wait for go").pid
    study.pause(now=True)
    wait_until(is_gone(pid), "its process is ended")

    def exits():
        found = offline_runs(fleet.settings.home).items()
        return [each["exits"] for name, each in found if name.startswith("fault-0-")]

    wait_until(lambda: [1] in exits(), "so is its run, as no success")
    fleet.go()
    study.resume()
    fleet.await_over()
