from __future__ import annotations

import math

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from orchestrator.dashboard.curves import MAX_POINTS, NUM_RUNNING, curves, some_of, thinned
from orchestrator.dashboard.trial_columns import (
    TrialColumns,
    letter_of,
    log_parameters,
    number_for_chart,
    param_for_chart,
)

SPACE = {"x": FloatDistribution(0, 1), "kind": CategoricalDistribution(["a", "b", None, True])}


def trial(number, state=TrialState.COMPLETE, *, kind="a", reports=None, attrs=None):
    made = create_trial(
        state=state,
        value=number / 3 if state is TrialState.COMPLETE else None,
        params={"x": 1 / 7, "kind": kind},
        distributions=SPACE,
        intermediate_values=reports or {},
        user_attrs={f"trialfleet:{name}": value for name, value in (attrs or {}).items()},
    )
    made.number = number
    return made


def test_rows_become_columns_with_few_digits_and_every_choice_as_text():
    columns = TrialColumns()
    columns.take([trial(0), trial(1, kind=None), trial(2, kind=True)], 1)
    found = columns.since(-1)
    assert found["numbers"] == [0, 1, 2]
    assert found["states"] == "CCC"
    assert found["values"] == [[0.0, 0.333333, 0.666667]]
    assert found["params"] == {"kind": ["a", "None", "True"], "x": [0.142857] * 3}


def test_only_rows_that_changed_are_sent_again():
    columns = TrialColumns()
    assert columns.take([trial(0), trial(1, TrialState.RUNNING)], 1)
    assert not columns.take([trial(0), trial(1, TrialState.RUNNING)], 2)
    assert columns.since(1)["numbers"] == []
    assert columns.take([trial(0), trial(1, TrialState.RUNNING, reports={4: 0.5})], 3)
    assert columns.since(2)["last"] == [0.5]
    assert columns.take([trial(0), trial(1), trial(2, TrialState.WAITING)], 4)
    assert columns.since(3)["numbers"] == [1, 2]
    assert columns.since(3)["states"] == "CO"


@pytest.mark.parametrize(
    ("state", "attrs", "letter"),
    [
        (TrialState.COMPLETE, {}, "C"),
        (TrialState.PRUNED, {}, "P"),
        (TrialState.FAIL, {}, "F"),
        (TrialState.FAIL, {"state": "DEAD"}, "D"),
        (TrialState.FAIL, {"state": "CANCELLED"}, "X"),
        (TrialState.RUNNING, {}, "O"),
        (TrialState.RUNNING, {"rung": {"is_paused": True}}, "R"),
    ],
)
def test_a_letter_says_how_a_trial_stands(state, attrs, letter):
    assert letter_of(trial(0, state, attrs=attrs)) == letter


def test_a_complete_trial_that_violates_a_constraint_is_told_apart():
    study = optuna.create_study()
    asked = study.ask()
    asked.set_constraint("memory", 1.0)
    assert letter_of(study.tell(asked, 0.5)) == "V"


def test_what_no_chart_can_place_is_left_out():
    columns = TrialColumns()
    reports = {1: 0.5, 2: math.nan}
    columns.take([trial(0, TrialState.PRUNED, reports=reports)], 1)
    assert columns.since(-1)["last"] == [None]


def test_a_whole_number_beyond_what_a_float_holds_breaks_no_chart():
    for value in (10**400, -(10**400)):
        assert param_for_chart(value) is None
    assert param_for_chart(10**300) == 1e300


def test_curves_are_those_of_the_best_the_latest_the_running_and_some_others_each_thinned_out():
    reports = {step: float(step) for step in range(1000)}
    trials = [trial(number, reports=reports) for number in range(300)]
    found = curves(trials, best=[7, 3], running=range(100, 300))
    numbers = [curve["trial"] for curve in found]
    others = range(0, 300, 16)
    assert numbers == sorted({3, 7, *range(100, 100 + NUM_RUNNING), *range(270, 300), *others})
    assert {len(curve["steps"]) for curve in found} == {MAX_POINTS}
    assert {(curve["steps"][0], curve["steps"][-1]) for curve in found} == {(0, 999)}


def test_of_a_growing_study_the_same_others_are_drawn_until_it_has_doubled():
    drawn = {tuple(some_of(range(count), 20)) for count in range(10_001)}
    assert max(map(len, drawn)) == 20
    assert some_of(range(640), 20)[:5] == some_of(range(321), 20)[:5] == range(0, 160, 32)
    assert some_of(range(641), 20)[:3] == range(0, 192, 64)
    assert some_of([], 20) == []


def test_few_steps_are_not_thinned_out():
    assert thinned([3, 4, 9], 3) == [3, 4, 9]


@pytest.mark.parametrize("value", [1.1e300, -1e308, math.inf, -math.inf, math.nan])
def test_no_chart_is_given_what_no_axis_holds(value):
    assert number_for_chart(value) is None
    assert number_for_chart(math.copysign(1e300, value)) == math.copysign(1e300, value)


def test_a_parameter_is_logarithmic_as_its_trials_asked_for_it():
    linear, log = FloatDistribution(0.1, 1.0), FloatDistribution(0.1, 1.0, log=True)
    trials = [
        create_trial(value=0.5, params=dict.fromkeys(given, 0.5), distributions=given)
        for given in ({"a": linear}, {"a": linear, "b": log})
    ]
    assert log_parameters(trials) == {"b"}
    columns = TrialColumns()
    columns.take(trials[:1], 1)
    assert columns.logs == set()
    columns.take(trials, 2)
    assert columns.logs == {"b"}
