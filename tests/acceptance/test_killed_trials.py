"""Pool processes that die, hang, stop or run out of memory, at every bad moment of a trial."""

from __future__ import annotations

import os
import signal

import pytest
from fault_fleet import broken_fleet
from offline_wandb import offline_runs
from remains import processes_of
from waiting import wait_until

from orchestrator.handle import StudyHandle

#: The first that looks at `broken` waits for all that the others look at, too.
pytestmark = pytest.mark.timeout(1800)


def run(fleet, trials=1, slots=1, **fields):
    fleet.submit(trials, **fields)
    fleet.serve()
    return fleet.worker(slots)


#: What an objective may do to its process; each is tried again, and is no loss of the worker's.
ENDS = ["exit 0", "exit 3", "SystemExit", "MemoryError", "RLIMIT_AS", "segmentation fault"]

#: By the trial that it befalls: what, and at which step.
DEATHS = {
    0: ("kill", 8),
    1: ("die while saving", 7),
    2: ("die after outbox", 4),
    3: ("die after commit", 4),
    **{number: (way, 4) for number, way in enumerate(ENDS, 4)},
}

NUM_TRIALS = len(DEATHS) + 1


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A fleet on which all of `DEATHS` befell trials of one study, and two studies a trial each."""
    with broken_fleet(tmp_path_factory.mktemp("broken")) as made:
        for number, (way, step) in DEATHS.items():
            made.order(way, number, step=step, study="fault")
        made.order("segmentation fault", number=1, attempt="*", step=0, study="deadly")
        made.order("kill", number=0, attempt="*", step=4, study="watched")
        made.serve()
        made.submit(max_losses=2, name="watched", wandb={"mode": "offline"})
        made.submit(4, name="deadly", max_failures=1, max_losses=2)
        made.submit(NUM_TRIALS)
        made.worker(slots=2)
        for study in ("fault", "deadly", "watched"):
            made.await_over(400, study=study)
        yield made


def of_trials(events, *numbers, study="fault"):
    """Those of some trials of a study."""
    return [
        event
        for event in events
        if event.get("trial") in numbers and event.get("study", study) == study
    ]


def notes_of(fleet, what, number, study="fault"):
    return [note for note in fleet.notes(what, number) if note.study == study]


@pytest.mark.fault(1)
@pytest.mark.fault(2)
@pytest.mark.parametrize("number", [0, 1], ids=["in training", "while it saves"])
def test_a_process_that_is_killed_is_followed_by_one_that_goes_on_from_the_checkpoint_before(
    broken, number
):
    broken.assert_sound(NUM_TRIALS, attempts={number: 2})
    (again,) = [note for note in notes_of(broken, "starts", number) if note.attempt == 2]
    assert again.step == 6, "the last multiple of three before the eighth step"
    reaped = of_trials(broken.events("reaped"), number)
    assert [event["ended"] for event in reaped] == ["REQUEUED"]


@pytest.mark.fault(3)
@pytest.mark.fault(4)
def test_a_process_killed_after_its_trial_is_committed_or_in_its_outbox_has_ended_it(broken):
    killed = {notes_of(broken, "starts", number)[0].pid for number in (2, 3)}

    def are_noticed():
        return killed <= {event["died"] for event in broken.events("process_died")}

    wait_until(are_noticed, "both deaths are noticed")

    def committed():
        return [event["status"] for event in of_trials(broken.events("outbox_committed"), 2)]

    wait_until(committed, "the host agent tells of it")
    assert committed() == ["OK"]

    def reasons():
        return {event["reason"] for event in of_trials(broken.events("not_claimed"), 3)}

    wait_until(
        lambda: "DONE" in reasons(), "Celery hands the message out again, and nothing comes of it"
    )
    # one more, where it had been announced again while its process still started
    assert reasons() <= {"DONE", "HELD"}
    broken.assert_sound(NUM_TRIALS, attempts={2: 1, 3: 1})
    for number in (2, 3):
        assert len(notes_of(broken, "starts", number)) == 1, "nothing is trained again"


@pytest.mark.fault(5)
@pytest.mark.fault(6)
@pytest.mark.parametrize("way", ENDS)
def test_an_objective_that_exits_or_breaks_its_process_is_tried_again_and_the_worker_stays(
    broken, way
):
    number = next(number for number, (order, _) in DEATHS.items() if order == way)
    broken.assert_sound(NUM_TRIALS, attempts={number: 2, NUM_TRIALS - 1: 1})
    assert [note.step for note in notes_of(broken, "starts", number)] == [0, 3]
    assert broken.workers[0].poll() is None


@pytest.mark.fault(31)
def test_a_trial_that_always_kills_its_process_is_dead_and_the_others_go_on(broken):
    handle = StudyHandle("deadly", broken.settings)
    status = {trial.number: trial for trial in handle.study.trials}
    assert [status[number].state.name for number in range(4)] == [
        "COMPLETE", "FAIL", "COMPLETE", "COMPLETE",
    ]  # fmt: skip
    attrs = status[1].user_attrs
    assert (attrs["trialfleet:state"], attrs["trialfleet:attempt"]) == ("DEAD", 2)
    assert attrs["trialfleet:error"].startswith("took 2 processes down: process ")
    assert "died" in attrs["trialfleet:error"]
    assert handle.status().losses == 2
    assert len(notes_of(broken, "starts", 1, "deadly")) == 2


def test_the_wandb_run_of_a_dead_trial_is_ended_and_no_service_is_left(broken):
    home = broken.settings.home

    def dead():
        """The runs of the trial; their names end with the study's generation."""
        found = offline_runs(home).items()
        return [run for name, run in found if name.startswith("watched-0-")]

    wait_until(lambda: any(1 in run["exits"] for run in dead()), "it is ended, as a failure")
    (run,) = dead()
    assert (run["group"], run["exits"]) == ("watched", [1])
    wait_until(
        lambda: not any("wandb" in line for line in processes_of(home)),
        "W&B's services end with their processes",
    )


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
