"""Which weights are numbers, and what is looked at."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from workers.protocol.errors import ObjectiveError
from workers.trials.finite import FiniteWatch, best_value, first_not_finite, trained


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_weight_that_is_no_number_is_named(dtype, bad):
    named = [(name, torch.ones(5, dtype=dtype)) for name in "abc"]
    assert first_not_finite(named) is None
    named[1][1][4] = named[2][1][0] = bad
    assert first_not_finite(named) == "b"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_weights_whose_sum_is_beyond_their_range_are_numbers(dtype):
    largest = torch.full((9,), torch.finfo(dtype).max, dtype=dtype)
    assert first_not_finite([("large", largest), ("both", torch.cat([largest, -largest]))]) is None


def test_infinities_that_add_up_to_nothing_are_found():
    assert first_not_finite([("a", torch.tensor([math.inf, -math.inf]))]) == "a"


def test_what_cannot_be_infinite_or_lies_nowhere_is_passed_over():
    named = [
        ("counts", torch.ones(3, dtype=torch.int64)),
        ("quantised", torch.ones(3).to(torch.float8_e4m3fn)),
        ("elsewhere", torch.empty(3, device="meta")),
        ("empty", torch.empty(0)),
    ]
    assert first_not_finite(named) is None
    assert first_not_finite([]) is None


def test_what_is_not_trained_may_be_infinite_as_masks_are():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module.register_buffer("mask", torch.full((2, 2), -math.inf))
    module.register_parameter("fixed", nn.Parameter(torch.tensor([math.inf]), requires_grad=False))
    assert first_not_finite(trained(module)) is None
    module[1].running_var[0] = math.nan
    assert first_not_finite(trained(module)) == "1.running_var"


def test_the_last_finite_number_of_each_name_is_told():
    watch = FiniteWatch()
    watch.note("the loss", 0.25, "at step 1")
    watch.note("accuracy", 0.5, "at step 1")
    with pytest.raises(ObjectiveError, match=r"the loss is inf at step 2 .*one: 0.25 at step 1"):
        watch.note("the loss", math.inf, "at step 2")
    with pytest.raises(ObjectiveError, match="weight w is no .* .the loss was 0.25 at .*accuracy"):
        watch.look_at([("w", torch.tensor([math.nan]))], "at step 2")


@pytest.mark.parametrize(("direction", "best"), [("minimize", 0.1), ("maximize", 0.4)])
def test_the_best_value_is_the_best_in_any_order_and_none_where_one_is_nan(direction, best):
    assert best_value([0.4, 0.1, 0.2], direction) == best
    for values in ([0.4, math.nan], [math.nan, 0.4]):
        with pytest.raises(ObjectiveError, match=r"nan in evaluation \d of 2"):
            best_value(values, direction)
