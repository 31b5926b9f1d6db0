"""The parts of a report that are made of trials alone."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from orchestrator.reporting import chart_data as charts
from orchestrator.reporting.chart_data import chart_data
from orchestrator.reporting.code_facts import code_facts
from orchestrator.reporting.contour import contour
from orchestrator.reporting.failures import MAX_GROUPS, MAX_TEXT, failures
from orchestrator.storage.attributes import ATTR, CODE_ATTR

X, N = FloatDistribution(0, 1), IntDistribution(0, 10**6)


def trial(number, how=TrialState.COMPLETE, params=None, **own):
    params = {"x": number % 7 / 7, "n": number} if params is None else params
    made = create_trial(
        state=how,
        value=float(number) if how is TrialState.COMPLETE else None,
        params=params,
        distributions={name: X if name == "x" else N for name in params},
        user_attrs={f"{ATTR}{name}": value for name, value in own.items()},
    )
    made.number = number
    return made


def failed(number, text, state="FAILED"):
    error = text.splitlines()[-1]
    return trial(number, TrialState.FAIL, state=state, error=error, traceback=text)


def test_failures_are_grouped_by_what_they_have_in_common_with_the_last_traceback():
    trials = [
        failed(0, "Traceback\nValueError: 0.1 is too high"),
        failed(1, "Traceback\nKeyError: 'x'"),
        failed(2, "Traceback\nValueError: 0.25 is too high"),
        trial(3),
        trial(4, TrialState.FAIL, state="DEAD", error="took 3 processes down: exit -9"),
        trial(5, TrialState.FAIL, state="CANCELLED", error="it was cancelled"),
        trial(6, TrialState.FAIL, state="FAILED"),
        trial(7, TrialState.RUNNING),
    ]
    found = failures(trials)
    assert [(each.what, each.state, each.trials) for each in found] == [
        ("ValueError: 0.25 is too high", "failed", [0, 2]),
        ("KeyError: 'x'", "failed", [1]),
        ("took 3 processes down: exit -9", "dead", [4]),
        ("nothing is known of why", "failed", [6]),
    ]
    assert found[0].text == "Traceback\nValueError: 0.25 is too high"


def test_failures_of_many_kinds_and_long_tracebacks_have_a_bound():
    kinds = [chr(ord("a") + at) * 3 for at in range(20)]
    trials = [failed(at, f"{'y' * 2 * MAX_TEXT}\n{kind}Error") for at, kind in enumerate(kinds)]
    found = failures(trials)
    assert len(found) == MAX_GROUPS + 1
    assert sum(each.count for each in found) == len(trials)
    assert found[-1].what == "other failures"
    assert all(len(each.text) < MAX_TEXT + 10 and each.text.endswith("Error") for each in found)


def test_code_is_told_fact_by_fact_and_what_differs_with_how_many_trials_had_it():
    attrs = {
        f"{CODE_ATTR}a": {"torch": "2.13", "git_dirty": True, "host": "one", "gpu": None},
        f"{CODE_ATTR}b": {"torch": "2.12", "git_dirty": True, "host": "two", "gpu": None},
    }
    found = code_facts([trial(0, code="a"), trial(1, code="a"), trial(2, code="b")], attrs)
    assert {fact.name: fact.values for fact in found} == {
        "git_dirty": [("yes", 3)],
        "host": [("one", 2), ("two", 1)],
        "torch": [("2.13", 2), ("2.12", 1)],
    }
    assert [fact.name for fact in found if fact.differs] == ["torch"]
    assert code_facts([trial(0)], {}) == []


def test_of_many_trials_the_best_and_some_others_keep_their_parameters(monkeypatch):
    monkeypatch.setattr(charts, "MAX_POINTS", 10)
    monkeypatch.setattr(charts, "_MAX_BEST", 4)
    monkeypatch.setattr(charts, "MAX_PARAMS", 1)
    trials = [trial(number) for number in range(100)]
    found = chart_data(trials, trials[::-1], {"n": 0.9}, frozenset())
    assert list(found.params) == ["n"], "the one that matters"
    drawn = [value for value in found.params["n"] if value is not None]
    assert len(drawn) == found.num_drawn == 10
    assert drawn[-4:] == [96, 97, 98, 99]
    assert found.values == [[float(number) for number in range(100)]], "the history is whole"


def test_a_contour_has_the_values_of_the_trials_where_they_lie():
    x = [at / 10 for at in range(11) for _ in range(11)]
    y = [10.0 ** (at % 11 - 5) for at in range(121)]
    values = [float(at) for at in x]
    found = contour({"t": ["a"] * 121, "x": x, "y": y}, values, range(121), frozenset({"y"}))
    assert (found.names, found.logs) == (("x", "y"), (False, True))
    assert found.z[0][0] == pytest.approx(0.0, abs=0.1)
    assert found.z[-1][-1] == pytest.approx(1.0, abs=0.1)
    assert found.y[0] == pytest.approx(1e-5)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"x": [1.0] * 8},
        {"x": [1.0] * 8, "y": list(range(8))},  # no width
        {"x": ["a"] * 8, "y": list(range(8))},
        {"x": [None] * 7 + [1.0], "y": list(range(8))},
        {"x": [0.0, 1e-3] * 4, "y": [None] * 8},
    ],
)
def test_there_is_no_contour_of_what_has_no_plane(params):
    assert contour(params, [1.0] * 8, range(8), frozenset({"x"})) is None


def test_a_logarithmic_parameter_that_is_zero_is_drawn_on_a_plain_axis():
    params = {"x": [0.0, 1.0] * 4, "y": list(range(8))}
    assert contour(params, [1.0] * 8, range(8), frozenset({"x"})).logs == (False, False)


def test_no_complete_trial_is_no_chart():
    waiting = optuna.trial.create_trial(state=TrialState.WAITING)
    waiting.number = 0
    found = chart_data([waiting], [], {}, frozenset())
    assert (found.states, found.contour, found.num_drawn) == ("O", None, 0)
    assert chart_data([], [], {}, frozenset()).states == ""
