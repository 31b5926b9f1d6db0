"""Who is promoted from a rung, as a function of what the trials have reported."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.driving.rungs import Rungs, Standing
from workers.protocol.halving import RungSchedule
from workers.protocol.study_options import PrunerSpec

NAN = math.nan


def schedule(**options):
    made = RungSchedule.of(PrunerSpec(type="asha", promote=True, max_resource=27, **options))
    assert made is not None
    return made


def rungs_of(standings, direction="minimize", **options):
    made = Rungs(schedule(reduction_factor=3, **options), direction)
    for standing in standings:
        made.note(standing)
    return made


def paused(*values, rung=0):
    """Trials that are paused at one rung with these values there."""
    return [Standing(n, {3**rung: value}, rung, is_paused=True) for n, value in enumerate(values)]


@pytest.mark.parametrize(
    ("options", "resources"),
    [
        ({}, (1, 4, 16)),
        ({"reduction_factor": 3}, (1, 3, 9)),
        ({"reduction_factor": 3, "min_resource": 2}, (2, 6, 18)),
        ({"reduction_factor": 3, "min_early_stopping_rate": 1}, (3, 9)),
        ({"reduction_factor": 26}, (1, 26)),
        ({"reduction_factor": 27}, (1,)),
    ],
)
def test_rungs_lie_at_powers_of_the_reduction_factor_below_the_largest_resource(options, resources):
    made = schedule(**options)
    assert made.resources == resources
    assert made.resource(len(resources) - 1) == resources[-1]
    assert made.resource(len(resources)) is None, "it goes to its end"


@pytest.mark.parametrize(
    ("values", "direction", "promoted"),
    [
        ([], "minimize", []),
        ([1.0], "minimize", []),
        ([1.0, 2.0], "minimize", []),
        ([3.0, 1.0, 2.0], "minimize", [1]),
        ([3.0, 1.0, 2.0], "maximize", [0]),
        ([3.0, 1.0, 2.0, 0.5, 9.0], "minimize", [3]),
        ([3.0, 1.0, 2.0, 0.5, 9.0, 8.0], "minimize", [3, 1]),
        ([NAN, 5.0, 7.0], "minimize", [1]),
        ([NAN, 5.0, 7.0], "maximize", [2]),
        ([NAN, math.inf, NAN], "minimize", [1]),
        ([NAN, -math.inf, NAN], "maximize", [1]),
        ([NAN, NAN, NAN], "minimize", [0]),
        ([2.0, 2.0, 2.0, 2.0, 2.0, 2.0], "maximize", [0, 1]),
    ],
)
def test_the_best_of_each_three_go_on(values, direction, promoted):
    assert rungs_of(paused(*values), direction).promotable() == promoted


def test_who_was_promoted_keeps_its_place_and_who_comes_later_takes_only_a_new_one():
    trials = paused(1.0, 2.0, 3.0)
    made = rungs_of(trials)
    assert made.promotable() == [0]
    made.note(Standing(0, {1: 1.0}, rung=1))
    assert made.promotable() == []
    for late in (Standing(3, {1: 0.5}, is_paused=True), Standing(4, {1: 9.0}, is_paused=True)):
        made.note(late)
    assert made.promotable() == [3], "better than the one before: a mistake of the rung is mended"
    made.note(Standing(5, {1: 9.5}, is_paused=True))
    assert made.promotable() == [3]


def test_the_highest_rung_comes_first():
    low = [Standing(n, {1: float(n)}, 0, is_paused=True) for n in range(3)]
    high = [Standing(n + 3, {1: 9.0, 3: float(n)}, 1, is_paused=True) for n in range(3)]
    assert rungs_of([*low, *high]).promotable() == [3, 0, 1]


def test_a_trial_counts_from_its_report_and_goes_on_once_it_is_paused():
    made = rungs_of([*paused(5.0, 6.0), Standing(2, {1: 1.0})])
    assert made.promotable() == [], "the best of the three still trains"
    made.note(Standing(2, {1: 1.0}, is_paused=True))
    assert made.promotable() == [2]


def test_the_first_report_at_a_rung_or_beyond_it_is_its_value():
    made = rungs_of(
        [Standing(0, {2: 5.0, 4: 1.0, 0: 0.0}, is_paused=True), *paused(9, 2.0, 3.0)[1:]]
    )
    assert made.promotable() == [1]
    assert made.has_reached(0, 0)
    assert made.has_reached(0, 1)
    assert not made.has_reached(0, 2)


def test_a_trial_that_failed_is_held_against_nobody():
    made = rungs_of([*paused(2.0, 3.0, 4.0), Standing(3, {1: 1.0}, counts=False)])
    assert made.promotable() == [0]
    assert made.num_reached(0) == 3
    made.note(Standing(0, {1: 2.0}, rung=1, counts=False))
    assert (made.promotable(), made.num_reached(0)) == ([], 2)


def test_nobody_goes_on_before_as_many_as_wanted_have_reached_a_rung():
    assert rungs_of(paused(1.0, 2.0, 3.0), bootstrap_count=4).promotable() == []
    assert rungs_of(paused(1.0, 2.0, 3.0, 4.0), bootstrap_count=4).promotable() == [0]


def test_the_leader_is_the_best_paused_trial_of_the_highest_rung():
    high, gone = Standing(7, {1: 9, 3: 9}, 1, is_paused=True), Standing(8, {1: 0.5, 3: 0.5}, 2)
    for trials, among_paused, of_all in [
        ([], None, None),
        (paused(3.0, 1.0), 1, 1),
        ([*paused(3.0, 1.0), high], 7, 7),
        ([*paused(3.0, 1.0), high, gone], 7, None),
        ([*paused(3.0, 0.2), high, gone], 7, 1),
        ([gone], None, None),
    ]:
        assert rungs_of(trials).leader(of_all=False) == among_paused
        assert rungs_of(trials).leader(of_all=True) == of_all


VALUES = st.one_of(st.sampled_from([0.0, 1.0, NAN, math.inf, -math.inf]), st.floats())
TRIALS = st.lists(
    st.tuples(
        st.dictionaries(st.integers(0, 30), VALUES, max_size=4),
        st.integers(0, 3),
        st.booleans(),
        st.booleans(),
    ),
    max_size=30,
)


def by_definition(trials, direction):
    """Algorithm 2 of the paper, from the whole of the trials."""
    sign = -1 if direction == "maximize" else 1
    promoted = []
    for rung, resource in reversed(list(enumerate((1, 3, 9)))):
        reached = []
        for trial in trials:
            steps = [step for step in trial.reports if step >= resource]
            if steps and trial.counts:
                value = trial.reports[min(steps)]
                is_nan = math.isnan(value)
                reached.append((is_nan, 0.0 if is_nan else sign * value, trial.number))
        numbers = [number for *_, number in sorted(reached)[: len(reached) // 3]]
        promoted += [n for n in numbers if trials[n].is_paused and trials[n].rung == rung]
    return promoted


@given(TRIALS, st.sampled_from(["minimize", "maximize"]), st.randoms(use_true_random=False))
def test_what_is_promoted_follows_from_the_trials_in_whatever_order_they_came(
    drawn, direction, random
):
    trials = [Standing(number, *each) for number, each in enumerate(drawn)]
    made = rungs_of(trials, direction)
    assert made.promotable() == by_definition(trials, direction)
    shuffled = [*trials, *(Standing(each.number, {}) for each in trials)]  # as they began, too
    random.shuffle(shuffled)
    assert rungs_of([*shuffled, *trials], direction).promotable() == made.promotable()


@given(st.lists(VALUES, min_size=1, max_size=60), st.sampled_from(["minimize", "maximize"]))
def test_a_study_that_runs_to_its_end_has_promoted_one_of_three_at_each_rung(values, direction):
    made = Rungs(schedule(reduction_factor=3), direction)
    for number, value in enumerate(values):
        made.note(Standing(number, {1: value}, is_paused=True))
    standing = {number: ({1: value}, 0) for number, value in enumerate(values)}
    while found := made.promotable():
        reports, rung = standing[found[0]]
        standing[found[0]] = reports, rung = (
            {**reports, 3 ** (rung + 1): values[found[0]]},
            rung + 1,
        )
        made.note(Standing(found[0], reports, rung, is_paused=rung < 3))
    sizes = [made.num_reached(rung) for rung in range(3)]
    assert sizes == [len(values), len(values) // 3, len(values) // 3 // 3]
