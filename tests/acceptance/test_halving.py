"""Successive halving that promotes, on real workers that are killed at each bad moment."""

from __future__ import annotations

import os
import signal
from collections import Counter

import faulty
import pytest
from remains import ends_in_journal, keys_of
from waiting import wait_until

from orchestrator.handle import StudyHandle

ASHA = {"type": "asha", "promote": True, "reduction_factor": 3, "max_resource": 9}
SPACE = {"x": {"type": "float", "low": 0.0, "high": 1.0}}
TRIALS = 18


def run(fleet, trials=TRIALS, **fields):
    given = {"pruner": ASHA, "space": SPACE, "sampler": {"type": "tpe", "seed": 1}, **fields}
    fleet.submit(trials, "climb", **given)
    fleet.serve()
    return [fleet.worker() for _ in range(2)]


def reached(fleet, step):
    return {trial.number for trial in fleet.trials() if step in trial.intermediate_values}


def steps_of(fleet):
    """How often each step of each trial was made."""
    return Counter((note.number, note.step) for note in fleet.notes("step"))


def assert_promoted(fleet, trials=TRIALS):
    """All ended once, as they should have; the best third of each rung went on; nothing is left."""
    stored = fleet.trials()
    assert ends_in_journal(fleet.settings.home, "fault") == dict.fromkeys(range(trials), 1)
    assert reached(fleet, 1) == set(range(trials))
    assert set(range(trials // 3)) <= reached(fleet, 3)
    assert set(range(trials // 9)) <= reached(fleet, 9)
    for trial in stored:
        last = max(trial.intermediate_values)
        assert trial.state.name == ("COMPLETE" if last == 9 else "PRUNED")
        assert trial.value == trial.intermediate_values[last]
        assert last in {1, 3, 9}, "it stopped at a rung, or at its end"
    undisturbed = losses(stored[0])
    for trial in stored:
        told = losses(trial)
        assert told == pytest.approx({step: undisturbed[step] for step in told})
    status = StudyHandle("fault", fleet.settings).status()
    assert (status.state, status.trials["paused"]) == ("finished", 0)
    assert status.best.number == 0
    wait_until(lambda: not keys_of(fleet.client, "fault"), "no key is left")


def losses(trial):
    """What its training came to, step by step, with its number taken out."""
    return {
        step: value - 1000.0 * trial.number for step, value in trial.intermediate_values.items()
    }


def test_on_two_workers_no_step_is_made_twice_and_the_best_of_each_three_go_on(fleet):
    for number in (0, 1):
        fleet.order("stay until go", number, step=0)
    run(fleet)
    holders = {fleet.await_note("stay until go", number).pid for number in (0, 1)}
    assert len(holders) == 2
    fleet.go()
    fleet.await_over()
    assert_promoted(fleet)
    made = steps_of(fleet)
    assert set(made.values()) == {1}
    lasts = {trial.number: max(trial.intermediate_values) for trial in fleet.trials()}
    assert made.total() == sum(lasts.values()), "each was trained as far as it got, and no further"
    assert made.total() < TRIALS * faulty.CLIMB_STEPS / 2
    wait_until(
        lambda: not list(fleet.settings.home.glob("checkpoints/*/*/*")),
        "the checkpoints of paused trials are removed with the study's end",
    )


def test_a_worker_killed_on_its_way_to_a_rung_or_at_it_loses_nothing(fleet):
    """Each way befalls two trials: one before its first rung, one after its promotion."""
    ways = ["kill", "die before pause", "die after pause"]
    for index, way in enumerate(ways):
        fleet.order(way, number=2 * index, step=0)
        fleet.order(way, number=2 * index + 1, attempt=2, step=1)
    run(fleet)
    fleet.await_over(450)  # six processes are replaced
    assert_promoted(fleet)
    assert [len(fleet.notes(way)) for way in ways] == [2, 2, 2]
    made = steps_of(fleet)
    at_a_rung = [count for (number, _), count in made.items() if number in {2, 3}]
    assert max(at_a_rung) == 1, "what was reported at a rung is not trained for again"
    assert max(made.values()) <= 2, "one death a trial: none of its steps is made a third time"
    assert [fleet.record(number).failures for number in range(TRIALS)] == [0] * TRIALS


def test_workers_and_orchestrators_killed_while_trials_are_paused_and_promoted_lose_nothing(fleet):
    workers = run(fleet)
    for count in (4, 8, 12):
        wait_until(lambda n=count: len(fleet.notes("drained")) >= n, "some were paused")
        fleet.orchestrators[-1].kill()
        fleet.orchestrators[-1].wait()
        os.kill(workers[0].pid, signal.SIGKILL)
        fleet.serve()
        workers = [workers[1], fleet.worker()]
    fleet.await_over()
    assert_promoted(fleet)


def test_a_redis_that_loses_all_keeps_what_is_paused_and_goes_on_from_its_checkpoints(fleet):
    fleet.order("stay until go", number=8, attempt="*", step=0)
    run(fleet, trials=9)
    handle = StudyHandle("fault", fleet.settings)

    def rest():
        trials = handle.status().trials
        return trials["paused"] + trials["complete"] == 8

    wait_until(rest, "all but one are paused, or at their end")
    fleet.await_note("stay until go", number=8)
    before = len(fleet.notes("starts", number=8))
    fleet.client.flushall()
    wait_until(lambda: len(fleet.notes("starts", number=8)) > before, "it runs again")
    fleet.go()
    fleet.await_over()
    assert_promoted(fleet, trials=9)
    redone = {number for (number, _), count in steps_of(fleet).items() if count > 1}
    assert redone <= {8}, "who was paused, or promoted, went on where it had stopped"
