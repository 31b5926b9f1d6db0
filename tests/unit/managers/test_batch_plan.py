from __future__ import annotations

import numpy as np
import pytest

from workers.managers.batch_plan import ByRows, ByTokens, held_out_batches
from workers.protocol.finetune import FinetuneConfig

#: Lengths as texts have them: most are short, some are long, some are cut at 512.
TEXTS = np.minimum(np.random.default_rng(5).lognormal(3.0, 1.2, 4000).astype(np.int64), 512)


def padded_tokens(lengths, batch):
    return int(lengths[batch].max()) * len(batch)


@pytest.mark.parametrize("plan", [ByRows(TEXTS, 48), ByTokens(TEXTS, 2048)])
def test_an_epoch_has_each_row_once_and_as_many_batches_as_was_known_before(plan):
    seen = set()
    for seed, number in [(0, 0), (0, 1), (7, 0)]:
        batches = plan.epoch(seed, number)
        assert len(batches) == plan.num_batches
        assert sorted(row for batch in batches for row in batch) == list(range(len(TEXTS)))
        assert batches == plan.epoch(seed, number)
        seen.add(tuple(map(tuple, batches)))
    assert len(seen) == 3, "no two epochs are alike"


@pytest.mark.parametrize("batch_tokens", [512, 2048, 100_000_000])
def test_no_batch_of_tokens_has_more_of_them_padding_included_nor_far_fewer(batch_tokens):
    batches = ByTokens(TEXTS, batch_tokens).epoch(1, 3)
    sizes = sorted(padded_tokens(TEXTS, batch) for batch in batches)
    assert sizes[-1] <= batch_tokens
    # the last one cut may be small; of the others, each could not have had one more row
    assert all(size > 0.45 * batch_tokens for size in sizes[1:])
    padded = sum(sizes)
    assert len(batches) == 1 or padded < 1.15 * TEXTS.sum()


def test_a_row_that_is_longer_than_a_batch_is_one_by_itself():
    assert sorted(map(len, ByTokens(np.array([90, 3, 0, 5]), 10).epoch(0, 0))) == [1, 1, 2]
    assert held_out_batches(np.array([90, 3, 0, 5]), 9, 10) == [[0], [3, 1], [2]]


def test_in_an_epoch_by_tokens_each_row_counts_alike():
    plan = ByTokens(TEXTS, 2048)
    shares = [plan.share(len(batch)) for batch in plan.epoch(0, 0)]
    assert np.mean(shares) == pytest.approx(1.0)
    # what a row counts is its batch's share over the batch's rows
    for batch, share in zip(plan.epoch(0, 0), shares, strict=True):
        assert share / len(batch) == pytest.approx(plan.num_batches / len(TEXTS))
    assert ByRows(TEXTS, 48).share(3) == 1.0


@pytest.mark.parametrize("batch_tokens", [None, 700])
def test_what_is_held_out_is_measured_once_the_longest_first(batch_tokens):
    batches = held_out_batches(TEXTS, 64, batch_tokens)
    assert sorted(row for batch in batches for row in batch) == list(range(len(TEXTS)))
    longest = [int(TEXTS[batch].max()) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    assert batch_tokens is None or max(padded_tokens(TEXTS, batch) for batch in batches) <= 700


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_tokens": 512, "batch_size": 32}, "give one of them"),
        ({"batch_tokens": 512, "gradient_accumulation_steps": 2}, "give micro_batch_size, the"),
        ({"batch_tokens": 100}, "`batch_tokens` = 100 is less than data.max_length = 128"),
        ({"eval_batch_tokens": 100}, "`eval_batch_tokens` = 100 is less than data.max_length"),
        ({"eval_batch_tokens": 512, "eval_batch_size": 9}, "both say what is measured at once"),
        ({"batch_tokens": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_size_a_batch_twice_or_too_small_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        FinetuneConfig.model_validate(settings)


def test_a_setting_of_null_is_none():
    config = FinetuneConfig.model_validate({"batch_tokens": None, "batch_size": 8})
    assert (config.batch_size, config.batch_tokens) == (8, None)
