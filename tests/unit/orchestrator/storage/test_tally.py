from __future__ import annotations

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState, create_trial

from orchestrator.storage.attributes import RUNG_ATTR
from orchestrator.storage.best_trials import best_first, least_violating_first
from orchestrator.storage.tally import NUM_RECENT, Tally
from workers.protocol.study_options import MAX_BEST

STATES = st.sampled_from([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL])
VALUES = st.floats(-2.0, 2.0) | st.just(float("inf"))


@st.composite
def trials_of(draw, num_directions):
    found = []
    for number in range(draw(st.integers(0, 60))):
        state = draw(STATES)
        values = draw(st.lists(VALUES, min_size=num_directions, max_size=num_directions))
        trial = create_trial(
            state=state,
            values=values if state is TrialState.COMPLETE else None,
            user_attrs={"trialfleet:busy_seconds": 1.5, "trialfleet:losses": number % 2},
        )
        if draw(st.booleans()):
            trial.set_constraint("memory", draw(st.sampled_from([-1.0, 0.0, 1.0])))
        trial.number = number
        found.append(trial)
    return found


@pytest.mark.parametrize("directions", [["minimize"], ["maximize"], ["minimize", "maximize"]])
@given(data=st.data())
def test_what_is_kept_is_what_a_count_over_all_trials_says(directions, data):
    trials = data.draw(trials_of(len(directions)))
    kept = Tally(directions)
    for trial in data.draw(st.permutations(trials)):
        opened = create_trial(state=TrialState.FAIL)
        opened.state, opened.number = TrialState.RUNNING, trial.number
        kept.add([opened])
        assert trial.number in kept.open
        kept.add([trial])
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
    best = best_first(trials, directions)
    assert kept.best == (best if len(directions) > 1 else best[:MAX_BEST])
    assert (kept.num_trials, kept.num_ended, kept.open) == (len(trials), len(trials), set())
    assert kept.num_complete == len(complete)
    assert kept.num_infeasible == len(complete) - sum(
        all(value <= 0 for value in trial.constraints.values()) for trial in complete
    )
    nearest = [] if best else least_violating_first(trials, directions)[:MAX_BEST]
    assert kept.least_violating == nearest
    assert kept.busy_seconds == pytest.approx(1.5 * len(trials))
    assert kept.ends.losses == sum(trial.number % 2 for trial in trials)
    assert kept.ended == Tally(directions, trials).ended
    assert kept.best == Tally(directions, trials).best


def test_a_trial_that_ends_has_no_other_trial_looked_at(monkeypatch):
    trials = [create_trial(state=TrialState.COMPLETE, value=float(n)) for n in range(2 * MAX_BEST)]
    for number, trial in enumerate(trials):
        trial.number = number
    tally, looked_at = Tally(["minimize"], trials[1:]), []
    monkeypatch.setattr(
        FrozenTrial, "constraints", property(lambda trial: looked_at.append(trial.number) or {})
    )
    tally.add(trials[:1])
    assert looked_at == [0]
    assert [trial.number for trial in tally.best] == list(range(MAX_BEST))


@given(steps=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["pause", "go on", "end"]))))
def test_what_paused_trials_used_is_counted_while_they_are_paused_and_no_longer(steps):
    tally, trials = Tally(["minimize"]), {}
    for number, step in steps:
        trial = create_trial(state=TrialState.FAIL, user_attrs={"trialfleet:losses": number})
        if number in trials and trials[number].state.is_finished():
            continue
        trial.number = number
        if step == "end":
            trial.user_attrs["trialfleet:busy_seconds"] = 3.0
        else:
            trial.state = TrialState.RUNNING
        if step == "pause":
            trial.user_attrs |= {"trialfleet:slot_seconds": 2.0, RUNG_ATTR: {"is_paused": True}}
        trials[number] = trial
        tally.add([trial])
    paused = [each for each in trials.values() if RUNG_ATTR in each.user_attrs]
    ended = [each for each in trials.values() if each.state.is_finished()]
    assert tally.used_seconds == pytest.approx(2.0 * len(paused) + 3.0 * len(ended))
    assert tally.paused.keys() == {each.number for each in paused}
    assert {number: ends.losses for number, ends in tally.ends_at_rungs.items()} == {
        each.number: each.number for each in paused if each.number
    }


def test_where_no_trial_is_feasible_those_come_first_that_violate_least():
    given = [
        (4.0, {"a": 2.0}),
        (3.0, {"a": 0.5, "b": 0.75, "c": -9.0}),
        (9.0, {"a": float("inf"), "b": 1.0}),
        (5.0, {"a": 2.0}),
        (8.0, {"a": float("inf")}),
    ]
    trials = []
    for number, (value, constraints) in enumerate(given):
        trial = create_trial(state=TrialState.COMPLETE, value=value)
        trial.number = number
        for name, violation in constraints.items():
            trial.set_constraint(name, violation)
        trials.append(trial)
    tally = Tally(["maximize"], trials)
    assert tally.best == []
    assert [trial.number for trial in tally.least_violating] == [1, 3, 0, 2, 4]
    feasible = create_trial(state=TrialState.COMPLETE, value=-1.0)
    feasible.number = 9
    tally.add([feasible])
    assert ([trial.number for trial in tally.best], tally.least_violating) == ([9], [])


def test_the_latest_ended_are_kept_in_the_order_of_their_end():
    study = optuna.create_study()
    tally = Tally(["minimize"])
    asked = [study.ask() for _ in range(NUM_RECENT + 5)]
    tally.add(study.get_trials())
    order = [*reversed(range(len(asked)))]
    for number in order:
        tally.add([study.tell(number, 0.0)])
    assert [trial.number for trial in tally.recent] == order[-NUM_RECENT:]


def test_trials_that_were_withdrawn_before_they_began_do_not_make_trials_short():
    tally = Tally(["minimize"])
    for number, (state, seconds) in enumerate(
        [("COMPLETE", 60.0), ("CANCELLED", 30.0), *[("CANCELLED", 0.0)] * (NUM_RECENT - 2)]
    ):
        attrs = {"trialfleet:state": state, "trialfleet:busy_seconds": seconds}
        trial = create_trial(state=TrialState.FAIL, user_attrs=attrs)
        trial.number = number
        tally.add([trial])
    assert tally.trial_seconds == 45.0
    withdrawn = Tally(["minimize"])
    withdrawn.add([trial])
    assert withdrawn.trial_seconds is None
