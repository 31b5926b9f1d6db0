"""What an evaluation measures, against formulas written down a second time, in NumPy."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from workers.managers import MetricsManager

EXACT = {"rel": 1e-6, "abs": 1e-6}


def measured(meter, predictions, labels, size=7):
    """The scores of rows that come in batches."""
    for start in range(0, len(labels), size):
        rows = slice(start, start + size)
        meter.update(predictions[rows], labels[rows], torch.tensor(1.0))
    found = meter.compute()
    assert found.pop("loss") == 1.0
    return found


def f1_of(decided, applies):
    right = (decided & applies).sum()
    total = decided.sum() + applies.sum()
    return 2 * right / total if total else None


def auroc_of(scores, applies):
    """The share of pairs of a one and another that are in order; ties count half."""
    ones, others = scores[applies], scores[~applies]
    if not len(ones) or not len(others):
        return None
    pairs = [(one > other) + (one == other) / 2 for one in ones for other in others]
    return np.mean(pairs)


def mean(values):
    return np.mean([value for value in values if value is not None])


def by_class(logits, labels):
    """The scores of one class a text."""
    logits, labels = logits.numpy().astype(np.float64), labels.numpy()
    count, predicted = logits.shape[1], logits.argmax(1)
    matrix = np.zeros((count, count))
    np.add.at(matrix, (labels, predicted), 1)
    each = [f1_of(predicted == c, labels == c) for c in range(count)]
    shares = [(labels == c).mean() for c in range(count)]
    one_hot = [np.eye(count)[values] for values in (labels, predicted)]
    centred = [values - values.mean(0) for values in one_hot]
    covariance = [(a * b).sum() for a in centred for b in centred]  # tt, tp, pt, pp
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    if count == 2:  # as the chances would be if a float could be that near to 1
        chances = logits - logits[:, ::-1]
    return {
        "accuracy": np.trace(matrix) / matrix.sum(),
        "f1": mean(each),
        "f1_macro": mean(each),
        "f1_micro": np.trace(matrix) / matrix.sum(),
        "f1_weighted": sum(s * f for s, f in zip(shares, each, strict=True) if f is not None),
        "mcc": covariance[1] / math.sqrt(covariance[0] * covariance[3]),
        "auroc": mean([auroc_of(chances[:, c], labels == c) for c in range(count)]),
    }


def by_flags(logits, labels):
    """The scores of any number of classes a text."""
    logits, applies = logits.numpy(), labels.numpy().astype(bool)
    decided = logits > 0
    each = [f1_of(decided[:, c], applies[:, c]) for c in range(logits.shape[1])]
    shares = applies.sum(0) / applies.sum()
    aurocs = [auroc_of(logits[:, c], applies[:, c]) for c in range(logits.shape[1])]
    return {
        "accuracy": np.mean([list(a) == list(b) for a, b in zip(decided, applies, strict=True)]),
        "f1_micro": f1_of(decided.ravel(), applies.ravel()),
        "f1_macro": mean(each),
        "f1_weighted": sum(s * f for s, f in zip(shares, each, strict=True) if f is not None),
        "auroc": mean(aurocs),
    }


def by_numbers(found, wanted):
    found, wanted = (values.numpy().astype(np.float64) for values in (found, wanted))

    def ranks(values):
        return [(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values]

    mse = np.mean((found - wanted) ** 2)
    return {
        "pearson": np.corrcoef(found, wanted)[0, 1],
        "spearman": np.corrcoef(ranks(found), ranks(wanted))[0, 1],
        "r2": 1 - mse / np.var(wanted),
        "mse": mse,
        "rmse": math.sqrt(mse),
        "mae": np.mean(np.abs(found - wanted)),
    }


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [2, 3, 9])
@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_scores_of_classes_are_those_of_the_formulas(container, count, seed, scale):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(61, count, generator=draw) * scale
    labels = torch.randint(0, max(count - seed % 2, 2), (61,), generator=draw)
    logits[10:20] = logits[0]  # equal scores
    if count == 2:  # in half precision many are equal
        logits = logits.bfloat16().float()
    found = measured(container.get(MetricsManager).classification(count), logits, labels)
    assert found == pytest.approx(by_class(logits, labels), **EXACT)


@pytest.mark.parametrize("seed", range(4))
def test_scores_of_several_classes_are_those_of_the_formulas(container, seed):
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(53, 5, generator=draw).round(decimals=1) * 20
    labels = (torch.rand(53, 5, generator=draw) < 0.3).to(torch.uint8)
    labels[:, seed] = seed % 2  # a class that all texts have, or none
    found = measured(container.get(MetricsManager).multi_label(5), logits, labels)
    assert found == pytest.approx(by_flags(logits, labels), **EXACT)


@pytest.mark.parametrize(("level", "spread"), [(0.0, 1.0), (1e4, 0.5), (-3.0, 1e-3)])
def test_scores_of_numbers_are_those_of_the_formulas(container, level, spread):
    draw = torch.Generator().manual_seed(3)
    wanted = level + spread * torch.randn(70, generator=draw).round(decimals=1)
    found = wanted + spread * torch.randn(70, generator=draw)
    found[5:15] = found[0]
    scores = measured(container.get(MetricsManager).regression(), found, wanted)
    assert scores == pytest.approx(by_numbers(found, wanted), **EXACT)


def test_what_one_class_leaves_undefined_is_left_out(container):
    metrics = container.get(MetricsManager)
    logits = torch.tensor([[0.2, 0.1, 0.9], [0.3, 0.1, 0.2]])
    found = measured(metrics.classification(3), logits, torch.tensor([0, 0]))
    assert set(found) == {"accuracy", "f1", "f1_macro", "f1_micro", "f1_weighted"}
    none = torch.zeros(2, 3, dtype=torch.uint8)
    assert measured(metrics.multi_label(3), logits - 0.25, none) == {"accuracy": 0.0}
    all_of_one = torch.tensor([[1, 0, 0], [1, 0, 0]])
    assert "auroc" not in measured(metrics.multi_label(3), logits, all_of_one)
    same = measured(metrics.regression(), logits[:, 0], torch.tensor([0.5, 0.5]))
    assert set(same) == {"mse", "rmse", "mae"}


def test_what_constant_predictions_leave_undefined_is_said_and_tells_nothing(container):
    metrics = container.get(MetricsManager)
    with capture_logs() as logs:
        found = measured(metrics.classification(3), torch.eye(3)[[1, 1, 1, 1]], torch.arange(4) % 3)
        assert (found["mcc"], found["auroc"]) == (0.0, 0.5)
        found = measured(metrics.regression(), torch.full((4,), 0.1), torch.arange(4.0))
        assert (found["pearson"], found["spearman"]) == (0.0, 0.0)
    said = [each["metric"] for each in logs if each["event"] == "metric_undefined"]
    assert said == ["mcc", "pearson", "spearman"]


def test_classes_by_the_ten_thousand_cost_no_square_of_them(container):
    count = 20_000
    meter = container.get(MetricsManager).classification(count)
    rows = torch.randint(0, count, (4, 3), generator=torch.Generator().manual_seed(0))
    for labels in rows:
        logits = torch.zeros(3, count).scatter_(1, labels[:, None], 1.0)
        meter.update(logits, labels, torch.tensor(0.0))
    found = meter.compute()
    assert {found[name] for name in ("accuracy", "f1_macro", "mcc", "auroc")} == {1.0}


def test_scores_that_are_too_many_to_be_ranked_are_not_kept(container, monkeypatch):
    monkeypatch.setattr("workers.managers.scores.MOST_SCORES", 20)
    meter = container.get(MetricsManager).classification(3)
    logits, labels = torch.eye(3), torch.arange(3)
    for num_batches in (3, 2):
        for _ in range(num_batches):
            meter.update(logits, labels, torch.tensor(0.0))
        assert ("auroc" in meter.compute()) == (num_batches == 2)


def test_the_formula_of_pairs_knows_order_and_ties():
    scores, ones = np.array([1.0, 2.0, 2.0, 3.0]), np.array([False, True, False, True])
    in_order = [(a, b) for a, b in combinations(range(4), 2) if ones[a] != ones[b]]
    assert len(in_order) == 4
    assert auroc_of(scores, ones) == (1 + 0.5 + 1 + 1) / 4
