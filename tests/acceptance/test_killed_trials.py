"""Pool processes that die, hang, stop or run out of memory, at every bad moment of a trial."""

from __future__ import annotations

import os
import signal

import pytest
from offline_wandb import offline_runs
from remains import processes_of
from waiting import wait_until

from orchestrator.handle import StudyHandle


def run(fleet, trials=1, slots=1, **fields):
    fleet.submit(trials, **fields)
    fleet.serve()
    return fleet.worker(slots)


@pytest.mark.fault(1)
@pytest.mark.fault(2)
def test_a_process_killed_in_training_or_while_it_saves_goes_on_from_the_checkpoint_before(fleet):
    fleet.order("kill", number=0, step=8)
    fleet.order("die while saving", number=1, step=7)
    run(fleet, trials=2)
    fleet.await_over()
    fleet.assert_sound(2, attempts={0: 2, 1: 2})
    for number in (0, 1):
        again = fleet.await_note("starts", number, attempt=2)
        assert again.step == 6, "the last multiple of three before the eighth step"
    assert [event["ended"] for event in fleet.events("reaped")] == ["REQUEUED"] * 2


@pytest.mark.fault(3)
@pytest.mark.fault(4)
def test_a_process_killed_after_its_trial_is_committed_or_in_its_outbox_has_ended_it(fleet):
    fleet.order("die after outbox", number=0)
    fleet.order("die after commit", number=1)
    run(fleet, trials=2)
    fleet.await_over()
    wait_until(lambda: len(fleet.events("process_died")) == 2, "both deaths are noticed")

    def committed():
        found = fleet.events("outbox_committed")
        return [event["status"] for event in found if event["trial"] == 0]

    wait_until(committed, "the host agent tells of it")
    assert committed() == ["OK"]
    wait_until(
        # twice, where it had been announced again while its process still started
        lambda: {e["reason"] for e in fleet.events("not_claimed") if e["trial"] == 1} == {"DONE"},
        "Celery hands the message out again, and nothing comes of it",
    )
    fleet.assert_sound(2, attempts={0: 1, 1: 1})
    assert len(fleet.notes("starts")) == 2, "nothing is trained again"


#: What an objective may do to its process; each is tried again, and is no loss of the worker's.
ENDS = ["exit 0", "exit 3", "SystemExit", "MemoryError", "RLIMIT_AS", "segmentation fault"]


@pytest.mark.fault(5)
@pytest.mark.fault(6)
def test_an_objective_that_exits_or_breaks_its_process_is_tried_again_and_the_worker_stays(fleet):
    for number, way in enumerate(ENDS):
        fleet.order(way, number)
    worker = run(fleet, trials=len(ENDS) + 1)
    fleet.await_over(300)
    tried = dict.fromkeys(range(len(ENDS)), 2)
    fleet.assert_sound(len(ENDS) + 1, attempts={**tried, len(ENDS): 1})
    for number in tried:
        assert fleet.await_note("starts", number, attempt=2).step == 3
    assert worker.poll() is None


@pytest.mark.fault(10)
def test_a_process_that_was_stopped_past_its_lease_writes_nothing_more(fleet):
    fleet.order("stop", step=4)
    run(fleet, slots=2)
    stopped = fleet.await_note("stop")
    fleet.await_note("starts", attempt=2)
    os.kill(stopped.pid, signal.SIGCONT)
    fleet.await_over()
    fleet.assert_sound(attempts={0: 2})
    wait_until(
        lambda: fleet.events("lost") or fleet.events("ending_process"), "the first one gives up"
    )
    written = [note for note in fleet.notes("step") if note.attempt == 1]
    assert max(note.step for note in written) <= 5, "at most the step that it was in"


@pytest.mark.fault(11)
def test_a_step_that_hangs_is_noticed_and_its_process_ends(fleet):
    fleet.order("hang", step=4)
    run(fleet, progress_timeout=30.0)  # times the scale: 3 s
    fleet.await_over()
    fleet.assert_sound(attempts={0: 2})
    assert [event["reason"] for event in fleet.events("ending_process")] == ["no step"]
    assert "since step 4; where a step may take so long, raise `progress_timeout` (now 3 s)" in (
        fleet.record().error
    )
    assert (fleet.record().failures, fleet.record().losses) == (1, 0), "the objective's own fault"


def test_a_trial_that_takes_no_notice_of_its_time_is_ended_with_its_process(fleet):
    fleet.order("hang", step=0)
    # times the scale: 3 s; and as much again for a stubborn one
    run(fleet, trials=2, objective="quick", trial_timeout=30.0)
    fleet.await_over()
    status = StudyHandle("fault", fleet.settings).status()
    assert (status.trials["failed"], status.trials["complete"], status.losses) == (1, 1, 0)
    attrs = fleet.trials()[0].user_attrs
    assert attrs["trialfleet:error"].startswith("trial_timeout: it held slots for 30 s, in 1 att")
    assert attrs["trialfleet:attempt"] == 1


@pytest.mark.fault(31)
def test_a_trial_that_always_kills_its_process_is_dead_and_the_others_go_on(fleet):
    fleet.order("segmentation fault", number=1, attempt="*", step=0)
    run(fleet, trials=4, max_failures=1, max_losses=2)
    fleet.await_over()
    status = {trial.number: trial for trial in fleet.trials()}
    assert [status[number].state.name for number in range(4)] == [
        "COMPLETE", "FAIL", "COMPLETE", "COMPLETE",
    ]  # fmt: skip
    attrs = status[1].user_attrs
    assert (attrs["trialfleet:state"], attrs["trialfleet:attempt"]) == ("DEAD", 2)
    assert attrs["trialfleet:error"].startswith("took 2 processes down: process ")
    assert "died" in attrs["trialfleet:error"]
    assert StudyHandle("fault", fleet.settings).status().losses == 2
    assert len(fleet.notes("starts", number=1)) == 2


def test_the_wandb_run_of_a_dead_trial_is_ended_and_no_service_is_left(fleet):
    fleet.order("kill", number=0, attempt="*", step=4)
    fleet.submit(max_losses=2, wandb={"mode": "offline"})
    fleet.serve()
    worker = fleet.worker()
    fleet.await_over()
    home = fleet.settings.home

    def dead():
        """The runs of the trial; their names end with the study's generation."""
        found = offline_runs(home).items()
        return [run for name, run in found if name.startswith("fault-0-")]

    wait_until(lambda: any(1 in run["exits"] for run in dead()), "it is ended, as a failure")
    (run,) = dead()
    assert (run["group"], run["exits"]) == ("fault", [1])
    worker.stop(60.0)
    wait_until(
        lambda: not any("wandb" in line for line in processes_of(home)),
        "W&B's services end with their processes",
    )
