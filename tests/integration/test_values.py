"""Whatever an objective may hand over, through a real server, in this process.

A value is accepted, and comes back equal by the stated rules, or it is refused at the call; the
trial ends once, and the orchestrator never stops.
"""

from __future__ import annotations

import cmath
import collections
import contextlib
import dataclasses
import enum
import math
import operator
import random
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import numpy as np
import optuna
import pytest
import torch
import value_hook
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from one_process_fleet import OneProcessFleet

from orchestrator.driving import service as service_module
from orchestrator.driving.shares import MAX_READY_PER_SLOT
from workers.coordination import keys
from workers.coordination.inbox import KEEP_SET_ASIDE, entries_set_aside
from workers.coordination.leases import TrialLeases
from workers.disk import checkpoints
from workers.protocol.errors import TransientError, UnsuitableValueError
from workers.protocol.messages import Result, RunTrial
from workers.protocol.spec import StudySpec

T = TypeVar("T")

COMPLETE = [optuna.trial.TrialState.COMPLETE]


class Colour(enum.Enum):
    RED = "red"
    BLUE = 3


@dataclasses.dataclass(frozen=True)
class Point:
    x: float
    label: str


@contextlib.contextmanager
def _its_own_recursion_limit():
    """Hypothesis sets another one for each example, and a trial puts back that of the first."""
    limit = sys.getrecursionlimit()
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


class Bench(OneProcessFleet):
    """One study of it, each attempt of whose trials is a function of the test."""

    def __init__(self, client, server, config, folder, **study: Any) -> None:
        allowed = config.model_copy(update={"objectives": ("value_hook",)})
        super().__init__(client, server, allowed, folder, only="values")
        fields = {"sampler": {"type": "random", "seed": 1}, "max_failures": 2, "trials": 10**6}
        self.spec = StudySpec(
            name="values", objective="value_hook:objective", **{**fields, **study}
        )
        self.studies.submit(self.spec)
        self.leases = self.studies.leases("values")
        self.number = -1

    def run(self, *attempts: Callable[[Any], Any]) -> optuna.trial.FrozenTrial:
        """Run the next trial, each attempt by a function; the trial as it is stored."""
        self.number += 1
        number = self.number
        self.until(lambda: self.leases.record(number), "it is enqueued")
        hint = RunTrial(study="values", number=number, epoch=self.leases.epoch)
        for attempt in attempts:
            value_hook.calls[:] = [attempt]
            self.client.hset(keys.trial("values", number), "not_before", 0)
            with _its_own_recursion_limit():
                self.runner.run(hint)
        assert self.leases.record(number).state.is_terminal, "no attempt is missing"
        return self.until(self.ended, "it has ended in the storage")

    def ended(self) -> optuna.trial.FrozenTrial | None:
        found = self.service._roster.drivers["values"].study.trials.stored(self.number)
        return found if found.state.is_finished() else None


@pytest.fixture
def bench(client, server, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(service_module, "_BLOCK_MS", 5)
    with ExitStack() as stack:
        yield lambda **study: stack.enter_context(
            Bench(client, server, settings, tmp_path, **study)
        )


def examples(count: int) -> hypothesis.settings:
    """So many, for as long as they take; a failure prints how to have it again."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    return hypothesis.settings(max_examples=count, suppress_health_check=checks, print_blob=True)


# --- values, each with what it is to be in JSON

text = st.text(st.characters(codec="utf-8"), max_size=20)
any_float = st.floats(width=64)


def same(strategy):
    return strategy.map(lambda value: (value, value))


leaves = st.one_of(
    same(st.none() | st.booleans() | st.integers() | any_float | text),
    st.text(st.characters(categories=["Cs"]), min_size=1, max_size=3).map(
        lambda value: (value, value.encode("utf-8", "backslashreplace").decode())
    ),
    st.floats(width=32).map(lambda value: (np.float32(value), float(np.float32(value)))),
    st.integers(-(2**31), 2**31 - 1).map(lambda value: (np.int32(value), value)),
    st.booleans().map(lambda value: (np.bool_(value), value)),
    st.floats(width=32).map(lambda value: (torch.tensor(value), value)),
    st.lists(st.floats(width=32), max_size=4).map(lambda items: (torch.tensor(items), items)),
    st.lists(st.integers(0, 9), max_size=4).map(lambda items: (np.array(items, dtype=int), items)),
    st.just((np.arange(6).reshape(2, 3), [[0, 1, 2], [3, 4, 5]])),
    st.just((torch.ones(2, requires_grad=True), [1.0, 1.0])),
    st.dates().map(lambda value: (value, value.isoformat())),
    st.datetimes().map(lambda value: (value, value.isoformat())),
    st.timedeltas().map(lambda value: (value, value.total_seconds())),
    st.decimals(allow_nan=False, allow_infinity=False, places=2, max_value=10**9).map(
        lambda value: (value, float(value))
    ),
    st.fractions(max_denominator=100, max_value=1000).map(lambda value: (value, float(value))),
    st.uuids().map(lambda value: (value, str(value))),
    st.sampled_from([(Colour.RED, "red"), (Colour.BLUE, 3)]),
    st.just((Path("a") / "ä b", "a/ä b")),
    st.just((torch.float16, "torch.float16")),
    st.just((torch.device("cpu"), "cpu")),
    st.just((np.datetime64("2026-01-02"), "2026-01-02")),
    st.just((range(3), [0, 1, 2])),
    st.just((torch.Size([2, 3]), [2, 3])),
    st.sets(st.integers(0, 9), max_size=4).map(lambda value: (value, sorted(value))),
)


def containers(children):
    def together(kind, plain=list):
        return lambda pairs: (kind(value for value, _ in pairs), plain(part for _, part in pairs))

    lists = st.lists(children, max_size=4)
    mappings = st.dictionaries(text, children, max_size=4)
    return st.one_of(
        lists.map(together(list)),
        lists.map(together(tuple)),
        lists.map(together(collections.deque)),
        st.tuples(children, children).map(
            lambda pairs: (
                Point(pairs[0][0], pairs[1][0]),
                {"x": pairs[0][1], "label": pairs[1][1]},
            )
        ),
        *(
            mappings.map(
                lambda found, kind=kind: (
                    kind({key: value for key, (value, _) in found.items()}),
                    {key: part for key, (_, part) in found.items()},
                )
            )
            for kind in (dict, collections.OrderedDict)
        ),
        st.dictionaries(st.integers(), children, max_size=3).map(
            lambda found: (
                {key: value for key, (value, _) in found.items()},
                {str(key): part for key, (_, part) in found.items()},
            )
        ),
    )


values = st.recursive(leaves, containers, max_leaves=8)

no_data = st.sampled_from(
    [
        object(), print, Point, 1j, b"bytes", (number for number in ()), torch.nn.Linear(1, 1),
        np.zeros(10_001), torch.zeros(101, 100), 10**5000, np.array([1j]), {(1, 2): 3},
        {1: 0, "1": 0}, [[object()]], {"a": {"b": [lambda: 0]}}, torch.zeros(2, device="meta"),
    ]
)  # fmt: skip


def equal(one: Any, other: Any) -> bool:  # noqa: PLR0911 - a table
    """Whether two values are one, of one type, NaN being NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(7), other.nan_to_num(7))
    if isinstance(one, (np.ndarray, np.generic)):
        has_nan = np.asarray(one).dtype.kind in "fc"
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=has_nan)
    if isinstance(one, (list, tuple, collections.deque)):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, dict):
        pairs = zip(one.items(), other.items(), strict=False)
        return len(one) == len(other) and all(
            key == name and equal(value, item) for (key, value), (name, item) in pairs
        )
    if dataclasses.is_dataclass(one):
        return equal(vars(one), vars(other))
    return bool(one == other) or (is_nan(one) and is_nan(other))


def is_nan(value: Any) -> bool:
    return isinstance(value, (float, complex)) and cmath.isnan(value)


# --- the properties


def test_attributes_come_back_plain_or_are_refused_at_the_call(bench):
    run = bench().run

    @examples(30)
    @given(st.lists(st.tuples(values, no_data), min_size=20, max_size=25))
    def attributes(pairs):
        def attach(trial):
            for index, ((value, _), bad) in enumerate(pairs):
                trial.set_user_attr(f"k{index}", value)
                with pytest.raises(UnsuitableValueError, match="user attribute 'bad'"):
                    trial.set_user_attr("bad", bad)
            return 1.0

        stored = run(attach)
        assert stored.value == 1.0, stored.user_attrs
        for index, ((_, plain), _) in enumerate(pairs):
            assert equal(stored.user_attrs[f"k{index}"], plain)
        assert "bad" not in stored.user_attrs

    attributes()


numbers = st.one_of(
    any_float,
    st.integers(-(2**60), 2**60),
    st.booleans(),
    st.floats(width=32).map(np.float32),
    st.floats(width=16).map(np.float16),
    st.integers(0, 100).map(np.int64),
    st.floats(width=32).map(torch.tensor),
    st.floats(width=32).map(lambda value: torch.tensor([[value]], requires_grad=True)),
    st.floats(width=64).map(lambda value: np.array([value])),
    st.fractions(max_denominator=9, max_value=9),
)

no_numbers = st.sampled_from(
    ["text", None, [], [1.0], {}, 1j, b"", object(), np.array([]), np.array([1, 2]),
     torch.ones(2), torch.zeros(1, device="meta"), "", print, 10**400]
)  # fmt: skip


def number_of(returned: Any) -> float:
    """What a returned value is as a number; NaN for what is none."""
    if isinstance(returned, (list, np.ndarray)) and len(returned) == 1:
        return float(returned[0])
    try:
        return float(returned.item() if isinstance(returned, torch.Tensor) else returned)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan


def test_numbers_of_every_kind_are_numbers_wherever_one_is_taken(bench):
    run = bench().run

    @examples(30)
    @given(st.lists(st.tuples(numbers, no_numbers), min_size=6, max_size=10), numbers | no_numbers)
    def reports(pairs, returned):
        def report(trial):
            for step, (value, bad) in enumerate(pairs):
                trial.report(value, step)
                with pytest.raises(TypeError):
                    trial.report(bad, step)
                with pytest.raises(TypeError):
                    trial.set_constraint(f"bad{step}", bad)
                if math.isfinite(number_of(value)):
                    trial.set_constraint(f"c{step}", value)
                else:
                    with pytest.raises(UnsuitableValueError, match="not finite"):
                        trial.set_constraint(f"c{step}", value)
            return returned

        stored = run(report)
        given_numbers = [number_of(value) for value, _ in pairs]
        for step, number in enumerate(given_numbers):
            assert equal(stored.intermediate_values[step], number)
        finite = {f"c{step}": n for step, n in enumerate(given_numbers) if math.isfinite(n)}
        assert stored.constraints == finite
        if math.isnan(number_of(returned)):
            assert stored.state is optuna.trial.TrialState.FAIL
            assert stored.user_attrs["trialfleet:state"] == "FAILED", "it is not tried again"
        else:
            assert stored.value == number_of(returned)

    reports()


def test_a_trial_that_is_pruned_at_whatever_value_is_pruned(bench):
    run = bench(pruner={"type": "median", "n_startup_trials": 0}).run

    @examples(15)
    @given(any_float, st.lists(any_float, min_size=1, max_size=4))
    def pruned(last, before):
        def prune(trial):
            for step, value in enumerate([*before, last]):
                trial.report(value, step)
            raise optuna.TrialPruned

        stored = run(prune)
        assert stored.state is optuna.trial.TrialState.PRUNED
        assert stored.value == (None if math.isnan(last) else last)

    pruned()


some_reports = st.lists(st.tuples(st.integers(0, 6), st.floats(-1, 3)), max_size=5)


@pytest.mark.parametrize("pruner", ["none", {"type": "threshold", "upper": 2.0}], ids=str)
def test_reports_of_any_order_and_attempt_are_stored_and_judged_as_optuna_does(bench, pruner):
    study = bench(pruner=pruner)
    none = optuna.pruners.NopPruner()
    judge = none if pruner == "none" else optuna.pruners.ThresholdPruner(upper=2.0)

    @examples(20)
    @given(some_reports, some_reports)
    def reports(first, second):
        reference = optuna.create_study(pruner=judge).ask()
        verdicts: list[bool] = []
        expected: list[bool] = []

        def report(trial, pairs):
            for step, value in pairs:
                trial.report(value, step)
                verdicts.append(trial.should_prune())

        def fail(trial):
            report(trial, first)
            raise TransientError("a first attempt")

        def succeed(trial):
            report(trial, second)
            return 0.5

        stored = study.run(fail, succeed)
        before = None
        for number, (step, value) in enumerate([*first, *second]):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that a step was reported before
                reference.report(value, step)
            is_again = before == step and number != len(first)  # and was judged a moment ago
            expected.append(False if is_again else reference.should_prune())
            before = step
        storage = reference.study._storage
        assert stored.intermediate_values == storage.get_trial(0).intermediate_values
        assert verdicts == expected

    reports()


# --- choices

choice_leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([1.0, 0.0, math.inf, math.nan]),
    text, st.integers(0, 3).map(np.int64), st.floats(width=32).map(np.float32),
    st.just(np.array([1, 2])),
)  # fmt: skip
choices = st.recursive(
    choice_leaves,
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.lists(children, max_size=3).map(tuple),
        st.dictionaries(text, children, max_size=2),
    ),
    max_leaves=5,
)


no_choices = st.sampled_from([Colour.RED, Colour, print, object(), 1j, b"x", {1, 2}, [Colour]])


def test_choices_come_back_as_the_objectives_own_objects_in_each_attempt(bench):
    run = bench().run

    @examples(20)
    @given(st.lists(st.lists(choices, min_size=1, max_size=6), min_size=4, max_size=6), no_choices)
    def suggested(all_choices, bad):
        first: list[Any] = []

        def suggest(trial):
            found = [
                trial.suggest_categorical(f"p{index} of {trial.number}", options)
                for index, options in enumerate(all_choices)
            ]
            for value, options in zip(found, all_choices, strict=True):
                assert any(value is choice for choice in options), "the objective's own object"
            with pytest.raises(UnsuitableValueError, match="bad: choice"):
                trial.suggest_categorical("bad", [1, bad])
            if first:
                assert all(map(operator.is_, found, first)), "the next attempt has the same"
                return 1.0
            first.extend(found)
            raise RuntimeError("once more")

        stored = run(suggest, suggest)
        assert stored.value == 1.0, stored.user_attrs
        assert len(stored.params) == len(all_choices)

    suggested()


def test_bounds_and_steps_of_every_kind_are_numbers_too(bench):
    def suggest(trial):
        low, high = np.float32(0.5), torch.tensor(1.0)
        assert 0.5 <= trial.suggest_float("f", low, high, log=np.bool_(False)) <= 1.0
        assert trial.suggest_int("i", np.int64(3), torch.tensor(3)) == 3
        for bad in (math.inf, math.nan, "low", None, [1]):
            with pytest.raises(UnsuitableValueError, match="g: high"):
                trial.suggest_float("g", 0.0, bad)
        with pytest.raises(UnsuitableValueError, match="high - low"):
            trial.suggest_float("g", -1.5e308, 1.5e308)
        with pytest.raises(UnsuitableValueError, match="plain text"):
            trial.suggest_float("\ud800", 0, 1)
        trial.suggest_float("again", 0, 1)
        with pytest.warns(UserWarning, match="'again' was suggested from"):
            assert 0 <= trial.suggest_float("again", 5, 6) <= 1
        trial.progress(np.int64(1))
        trial.report(1.0, torch.tensor(2))
        trial.save_checkpoint(np.int32(2), {"step": 2})
        for bad in (-1, 2**53, math.nan, "one", None):
            with pytest.raises(UnsuitableValueError, match="step"):
                trial.save_checkpoint(bad, {})
            with pytest.raises(UnsuitableValueError, match="step"):
                trial.report(1.0, bad)
        return 1.0

    stored = bench().run(suggest)
    assert stored.value == 1.0, stored.user_attrs
    assert stored.intermediate_values == {2: 1.0}


def test_text_of_a_megabyte_is_kept_and_more_is_cut_off(bench):
    megabyte = "ä" * 10**6

    def attach(trial):
        trial.set_user_attr("kept", megabyte)
        trial.set_user_attr("cut", "x" * (2**20 + 7))
        with pytest.raises(UnsuitableValueError, match="4194304 are the most"):
            trial.set_user_attr("too much", megabyte[1:])
        raise ValueError("\ud800 \0 " + "y" * 10**6)

    stored = bench(max_failures=1).run(attach)
    assert stored.user_attrs["kept"] == megabyte
    assert stored.user_attrs["cut"].endswith("... (7 characters more)")
    error = stored.user_attrs["trialfleet:error"]
    assert error.startswith("ValueError: \\ud800 \0 yyy")
    assert len(error) < 2100


# --- checkpoints

arrays = st.sampled_from(
    [np.arange(3), np.zeros((0, 2)), np.array(["a", "bc"]), np.array([1.5], ">f4"),
     np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]), np.array(7), np.array([True]),
     np.array(["2026-01-02"], "M8[D]"), np.asfortranarray(np.ones((2, 3))), np.array([1j])]
)  # fmt: skip
tensors = st.sampled_from(
    [torch.ones(2), torch.tensor(1.5, dtype=torch.bfloat16), torch.zeros(0), torch.tensor([True]),
     torch.nn.Parameter(torch.ones(2)), torch.arange(4)[::2], torch.tensor([1j]), torch.tensor(3)]
)  # fmt: skip
state_leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), any_float, st.text(max_size=5), st.binary(max_size=5),
    st.just(10**800), st.complex_numbers(), arrays, tensors, st.datetimes(), st.dates(), st.times(),
    st.timedeltas(), st.decimals(allow_nan=False), st.fractions(), st.uuids(),
    st.floats(width=32).map(np.float32), st.integers(0, 9).map(np.int64),
    st.sampled_from([Colour.RED, Path("/a/ä"), Point(1.0, "p"), torch.float16, torch.Size([1, 2]),
                     torch.device("cpu"), range(1, 5, 2), slice(1, None), np.str_("x")]),
    st.frozensets(st.integers(0, 9), max_size=3), st.sets(text, max_size=3),
)  # fmt: skip
state_keys = st.one_of(
    text, st.integers(), st.booleans(), st.none(), st.tuples(st.integers(), text)
)
states = st.recursive(
    state_leaves,
    lambda children: st.one_of(
        st.lists(children, max_size=4),
        st.lists(children, max_size=4).map(tuple),
        st.lists(children, max_size=4).map(lambda items: collections.deque(items, 9)),
        st.dictionaries(state_keys, children, max_size=4),
        st.dictionaries(text, children, max_size=4).map(collections.OrderedDict),
        st.dictionaries(text, children, max_size=4).map(
            lambda found: collections.defaultdict(list, found)
        ),
        st.dictionaries(st.just("\0kind"), children),
    ),
    max_leaves=10,
)
no_states = st.sampled_from(
    [print, object(), torch.nn.Linear(1, 1), np.array([object()]), Colour, [[lambda: 0]],
     collections.UserDict(a=1), torch.optim.SGD([torch.nn.Parameter(torch.ones(1))]),
     collections.defaultdict(lambda: 0)]
)  # fmt: skip


def test_a_checkpoint_comes_back_equal_or_is_refused_when_it_is_saved(bench):
    run = bench().run

    @examples(25)
    @given(st.lists(states, min_size=8, max_size=12), no_states)
    def saved(parts, bad):
        state = {f"part {index}": part for index, part in enumerate(parts)}

        def save(trial):
            assert trial.load_checkpoint() is None
            trial.save_checkpoint(1, state)
            with pytest.raises(UnsuitableValueError, match=r"state\['opt'\]\[0\]\['hook'\]"):
                trial.save_checkpoint(2, {"opt": [{"hook": bad}]})
            raise RuntimeError("once more")

        def load(trial):
            assert equal(trial.load_checkpoint(), state)
            return 1.0

        assert run(save, load).value == 1.0

    saved()


def test_generators_and_optimizers_go_on_where_they_were(bench):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    own = (random.Random(1), np.random.default_rng(2), np.random.RandomState(3))
    drawn: list[Any] = []

    def draw(generators):
        python, numpy, legacy = generators
        return (
            [python.random(), numpy.random(), legacy.rand()],
            [random.random(), np.random.rand(), float(torch.rand(1))],
        )

    def save(trial):
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "states": (random.getstate(), np.random.get_state(), torch.get_rng_state()),
            "generators": own,
        }
        trial.save_checkpoint(1, state)
        drawn.append(draw(own))
        raise RuntimeError("once more")

    def load(trial):
        state = trial.load_checkpoint()
        python, numpy, of_torch = state["states"]
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(of_torch)
        assert draw(state["generators"]) == drawn[0]
        assert state["model"]._metadata == model.state_dict()._metadata
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return 1.0

    assert bench().run(save, load).value == 1.0


def test_an_unreadable_checkpoint_counts_as_not_whole(bench):
    class Local(enum.Enum):
        ONE = 1

    opened = bench()

    def save(trial):
        with pytest.raises(UnsuitableValueError, match="cannot be found again by its name"):
            trial.save_checkpoint(1, {"kind": Local.ONE})
        trial.save_checkpoint(1, {"step": 1})
        trial.save_checkpoint(2, {"kind": Colour.RED})
        raise RuntimeError("once more")

    def load(trial):
        found = Colour.RED
        del globals()["Colour"]
        try:
            assert trial.load_checkpoint() == {"step": 1}, "the one before"
        finally:
            globals()["Colour"] = type(found)
        return 1.0

    assert opened.run(save, load).value == 1.0


def test_what_is_known_of_a_trial_at_a_checkpointed_step_comes_back_with_it(bench, tmp_path):
    (tmp_path / "weights").write_text("w")
    saves = {
        "state": (
            lambda trial, step: trial.save_checkpoint(step, {"step": step}),
            lambda trial: trial.load_checkpoint(),
        ),
        "files": (
            lambda trial, step: trial.save_checkpoint_files(step, tmp_path / "weights"),
            lambda trial: trial.load_checkpoint_files(),
        ),
    }
    opened = bench(max_failures=3)
    for save, load in saves.values():

        def begin(trial, save=save):
            trial.set_user_attr("seen", {"rows": 10})
            trial.set_user_attr("best", 0.5)
            trial.set_constraint("memory", 2.0)
            save(trial, 1)
            trial.set_user_attr("after it", 1)
            trial.set_constraint("late", 1.0)
            raise RuntimeError("once more")

        def go_on(trial, save=save, load=load):
            trial.set_user_attr("best", 0.0)
            assert load(trial) is not None
            assert trial.user_attrs == {"seen": {"rows": 10}, "best": 0.5}
            assert trial.constraints == {"memory": 2.0}
            save(trial, 2)
            raise RuntimeError("once more")

        def end(trial, load=load):
            load(trial)
            trial.set_constraint("memory", 1.0)  # as it may anew, in each attempt
            return 1.0

        ended = opened.run(begin, go_on, end)
        attrs = {k: each for k, each in ended.user_attrs.items() if not k.startswith("trialfleet:")}
        assert attrs == {"seen": {"rows": 10}, "best": 0.5}
        assert ended.constraints == {"memory": 1.0}


class Greedy:
    """Takes a state of its own for as long as there is memory, and knows what is in it."""

    def __init__(self, *, has_memory: bool = True) -> None:
        self.has_memory = has_memory

    def state_dict(self):
        return {"step": 1}

    def load_state_dict(self, state):
        if not self.has_memory:
            torch.empty(2**52)
        assert state["weights"]


def test_a_lack_of_memory_says_nothing_of_a_checkpoint_and_an_objectives_lookup_neither(
    bench, monkeypatch
):
    def no_memory(path):
        torch.empty(2**52)

    def save(trial):
        trial.save_checkpoint(1, {"step": 1})
        raise RuntimeError("once more")

    def run_out(trial):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "_read", no_memory)
            trial.load_checkpoint()

    def load(trial):
        assert trial.load_checkpoint() == {"step": 1}
        return 1.0

    def save_in_a_loop(trial):
        with trial.training(Greedy(), checkpoint_seconds=0.0) as run:
            for step in run.steps(range(3)):
                if step == 2:
                    raise RuntimeError("once more")

    def resume(trial):
        with trial.training(Greedy(has_memory=trial.attempt > 2)):
            return 1.0

    opened = bench(max_failures=3)
    ended = opened.run(save, run_out, load)
    assert ended.value == 1.0
    assert ended.user_attrs["trialfleet:attempt"] == 3
    refused = opened.run(save_in_a_loop, resume, resume)
    assert refused.state is optuna.trial.TrialState.FAIL
    assert refused.user_attrs["trialfleet:attempt"] == 3, "the first time there was no memory"
    assert (
        "does not take what the trial's checkpoint holds" in refused.user_attrs["trialfleet:error"]
    )
    assert "KeyError: 'weights'" in refused.user_attrs["trialfleet:error"]


# --- the inbox

GOOD = [
    {"kind": "report", "number": "0", "token": "1", "attempt": "1", "subject": "3", "body": "0.5"},
    {"kind": "suggest", "number": "0", "token": "1", "attempt": "1", "subject": "x", "body": "{}"},
    {"kind": "terminal", "number": "77777", "token": "1", "attempt": "1", "subject": "COMPLETE",
     "body": '{"values": [1.0], "user_attrs": {}}'},
]  # fmt: skip

BAD = [
    "", "x", "-1", "nan", "1e999", "null", "[]", "{}", "\0", "\ud800", "9" * 400, "[" * 10_000,
    '{"values": ["a"]}', '{"values": null}', '{"values": [1, 2]}', '{"values": [NaN]}', "RUNNING",
    b"\xff\xfe", "COMPLETE", "terminal", '{"values": [1.0], "constraints": {"c": "d"}}', "DEAD",
]  # fmt: skip


def broken(draw: random.Random) -> dict[str, Any]:
    """An entry with one to three of its fields gone, or filled with what nobody expects."""
    entry: dict[str, Any] = dict(draw.choice(GOOD))
    for name in draw.sample(sorted(entry), draw.randint(1, 3)):
        if draw.random() < 0.2:
            del entry[name]
        else:
            entry[name] = draw.choice(BAD)
    if entry.get("kind") == "terminal" and entry.get("body") == GOOD[2]["body"]:
        entry["body"] = draw.choice(BAD)
    if entry.get("kind") == "terminal" and entry.get("number") == "0":
        entry["number"] = "77777"  # by chance it would be the end of the trial that runs
    return {key: _sendable(value) for key, value in entry.items()} or {"x": "y"}


def _sendable(value: Any) -> Any:
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value


def test_no_entry_of_an_inbox_stops_anything_and_none_is_read_for_ever(bench, client):
    opened = bench()
    draw = random.Random(seed := random.randrange(10**6))
    print(f"seed {seed}")

    def while_fuzzed(trial):
        pipeline = client.pipeline(transaction=False)
        for _ in range(10_000):
            pipeline.xadd(keys.inbox("values"), broken(draw))
        pipeline.execute()
        trial.set_user_attr("told", "all the same")
        return 2.0

    stored = opened.run(while_fuzzed)
    assert (stored.value, stored.user_attrs["told"]) == (2.0, "all the same")
    opened.until(lambda: not client.xlen(keys.inbox("values")), "all are read")
    assert len(entries_set_aside(client, "values")) == KEEP_SET_ASIDE
    status = opened.until(lambda: opened.service.status("values"), "it is published")
    assert len(status.set_aside) == 5
    after = opened.run(lambda _: 3.0)
    assert after.value == 3.0, after.user_attrs


def test_an_end_that_cannot_be_read_fails_its_trial_and_says_why(bench, client, monkeypatch):
    opened = bench()
    commit = TrialLeases.commit

    def commit_nonsense(self, number, token, state, result, *told):
        nonsense = result.model_copy(update={"values": ["no number"]})
        with pytest.warns(UserWarning, match="serialized"):
            return commit(self, number, token, state, nonsense, *told)

    monkeypatch.setattr(TrialLeases, "commit", commit_nonsense)
    stored = opened.run(lambda _: 1.0)
    assert stored.state is optuna.trial.TrialState.FAIL
    assert "its result could not be taken in" in stored.user_attrs["trialfleet:error"]


def test_an_end_that_got_lost_fails_its_trial(bench, client, monkeypatch):
    opened = bench()

    def lose_the_end(trial):
        finish = type(trial._lease.leases).commit

        def finish_and_lose(self, *result):
            with opened.stopped_clock():
                status = finish(self, *result)
                client.delete(keys.inbox("values"))
            return status

        monkeypatch.setattr(TrialLeases, "commit", finish_and_lose)
        return 1.0

    stored = opened.run(lose_the_end)
    assert stored.state is optuna.trial.TrialState.FAIL
    assert "its result was lost" in stored.user_attrs["trialfleet:error"]


def test_attributes_that_a_storage_does_not_take_do_not_hide_the_values(bench, monkeypatch):
    from orchestrator.driving.study_trials import StudyTrials

    opened = bench()
    set_attr = StudyTrials.set_attr

    def refuse(self, number, key, value):
        if key == "large":
            raise ValueError("value too long for type character varying")
        set_attr(self, number, key, value)

    monkeypatch.setattr(StudyTrials, "set_attr", refuse)

    def attach(trial):
        trial.set_user_attr("small", 1)
        trial.set_user_attr("large", "x" * 100)
        return 1.0

    stored = opened.run(attach)
    assert (stored.value, stored.user_attrs["small"]) == (1.0, 1)
    assert "attribute 'large' left out" in stored.user_attrs["trialfleet:result_error"]


def test_a_result_goes_without_attributes_that_cannot_be_sent():
    result = Result(values=[1.0], constraints={"c": 0.5}, user_attrs={"bad": object()})
    sent = Result.model_validate_json(result.sendable().model_dump_json())
    assert (sent.values, sent.constraints, sent.user_attrs) == ([1.0], {"c": 0.5}, {})
    assert "attributes left out" in sent.result_error


# --- the study


def test_an_objective_looks_at_its_study_and_may_stop_it(bench):
    opened = bench(direction="maximize", metric="score")
    for value in (1.0, 3.0, 2.0):
        opened.run(lambda _, value=value: value)

    def look(trial):
        study = trial.study
        assert (study.study_name, study.direction.name) == ("values", "MAXIMIZE")
        assert study.metric_names == ["score"]
        assert [each.value for each in study.get_trials(states=COMPLETE)] == [1.0, 3.0, 2.0]
        assert (study.best_value, study.best_trial.number, study.best_params) == (3.0, 1, {})
        assert len(study.trials) > 3
        with pytest.raises(AttributeError, match="the orchestrator alone changes a study"):
            study.optimize(None)
        study.stop()
        return 4.0

    assert opened.run(look).value == 4.0
    status = opened.until(
        lambda: (found := opened.service.status("values")).is_over and found, "it is over"
    )
    assert status.state == "finished"
    in_flight = 1 + MAX_READY_PER_SLOT  # of one slot
    assert status.trials["cancelled"] <= in_flight, "short ones that waited ready for a slot"
    assert status.trials["queued"] == status.trials["running"] == 0
