from __future__ import annotations

import datetime as dt
import random

import optuna
import pytest
from optuna.trial import TrialState

from orchestrator.driving.progress import Progress
from orchestrator.storage.attributes import ATTR
from workers.protocol.spec import StudySpec

START = dt.datetime(2026, 1, 1)  # noqa: DTZ001 - as Optuna has it
BOOM = "Traceback:\n  File \"train.py\", line 3, in f\nKeyError: 'lr'\n"


def trials(*ends):
    """Trials that ended one second after the other: a value, a state, or a traceback."""
    found = []
    for number, end in enumerate(ends):
        is_value = isinstance(end, float)
        attrs = {f"{ATTR}traceback": end} if isinstance(end, str) else {}
        state = TrialState.COMPLETE if is_value else TrialState.FAIL
        trial = optuna.trial.create_trial(
            state=end if isinstance(end, TrialState) else state,
            value=end if is_value else None,
            user_attrs=attrs,
        )
        trial.number = number
        trial.datetime_complete = START + dt.timedelta(seconds=number)
        found.append(trial)
    return found


def progress(*ends, num_forgiven=0, **fields):
    made = trials(*ends)
    random.shuffle(made)
    return Progress(StudySpec(name="s", **fields), made, num_forgiven)


@pytest.mark.parametrize(
    ("fields", "ends", "best", "since"),
    [
        ({}, [], None, 0),
        ({}, [3.0], (0, 3.0), 0),
        ({}, [3.0, 4.0, 2.0, 2.0, 5.0], (2, 2.0), 2),
        ({"direction": "maximize"}, [3.0, 4.0, 2.0], (1, 4.0), 1),
        ({}, [3.0, TrialState.PRUNED, BOOM, TrialState.FAIL, 4.0], (0, 3.0), 2),
        # each a little better, and together by more than the step that counts
        ({"stop": {"patience": 9, "min_delta": 0.25}}, [3.0, 2.9, 2.8, 2.7], (3, 2.7), 0),
        ({"stop": {"patience": 9, "min_delta": 0.5}}, [3.0, 2.9, 2.8, 2.7], (3, 2.7), 3),
        ({"directions": ["minimize", "maximize"]}, [TrialState.PRUNED], None, 0),
    ],
)
def test_a_study_gets_better_by_its_feasible_trials_in_the_order_of_their_end(
    fields, ends, best, since
):
    found = progress(*ends, **fields)
    assert (found.best, found.num_since_better) == (best, since)


def test_a_trial_that_violates_a_constraint_is_never_better():
    first, second = trials(3.0, 1.0)
    second.set_constraint("size", 1.0)
    found = Progress(StudySpec(name="s"), [first, second])
    assert (found.best, found.num_since_better) == ((0, 3.0), 1)


@pytest.mark.parametrize(
    ("ends", "count"),
    [
        ([BOOM, BOOM, BOOM], 3),
        ([BOOM, 1.0, BOOM], 1),
        ([BOOM, TrialState.PRUNED, BOOM], 1),
        ([BOOM, TrialState.FAIL, BOOM], 2),
        ([BOOM, BOOM, BOOM.replace("KeyError", "ValueError")], 1),
        ([BOOM, BOOM.replace("line 3", "line 4").replace("'lr'", "'rate'")], 2),
        (["RuntimeError: loss 0.31 at 0x7f00aa", "RuntimeError: loss 1e-05 at 0x7f00ab"], 2),
        ([BOOM, BOOM, 1.0], 0),
    ],
)
def test_failures_in_a_row_are_alike_if_only_numbers_and_names_in_quotes_differ(ends, count):
    found = progress(*ends)
    assert found.num_alike == count
    assert (found.traceback is None) == (count == 0)


def test_failures_before_somebody_went_on_do_not_count():
    assert progress(BOOM, BOOM, BOOM, num_forgiven=2).num_alike == 1
    assert progress(BOOM, BOOM, num_forgiven=2).num_alike == 0
    assert progress(BOOM, BOOM, num_forgiven=3).num_alike == 0


def test_taking_trials_in_one_by_one_says_the_same():
    made = trials(3.0, BOOM, BOOM, 2.0, 4.0, BOOM)
    one_by_one = Progress(StudySpec(name="s"))
    for trial in made:
        one_by_one.note(trial)
    at_once = Progress(StudySpec(name="s"), made)
    assert vars(one_by_one) == vars(at_once)
