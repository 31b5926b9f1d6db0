"""What people report of an evaluation: of classes, of several classes a text, and of numbers.

Metrics of torchmetrics that give some scores at once, by name, in float64. Counts are as large as
there are classes, and not their square.

Invariant: a score that the labels leave undefined (of one class alone, no AUROC) is left out. One
that the predictions alone leave undefined, because they are all the same, is 0, as is said.
"""

from __future__ import annotations

import torch
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from workers.logs import get_logger
from workers.protocol.tasks import MOST_SCORES

log = get_logger(__name__)


class ClassScores(Metric):
    """Accuracy, F1 (macro, micro and weighted) and Matthews' correlation of one class a text.

    Macro F1 is the mean over the classes that are held out or predicted; Matthews' correlation is
    that of Gorodkin (2004), of any number of classes.

    Args:
        num_classes: Outputs of the model.
    """

    right: torch.Tensor
    predicted: torch.Tensor
    actual: torch.Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        _add_counts(self, ("right", "predicted", "actual"), num_classes)

    def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Count a batch: logits [batch, classes], and classes, int64 [batch]."""
        predicted, one = logits.argmax(-1), torch.ones_like(labels)
        self.actual = self.actual.index_add(0, labels, one)
        self.predicted = self.predicted.index_add(0, predicted, one)
        self.right = self.right.index_add(0, labels, (predicted == labels).long())

    def compute(self) -> dict[str, float]:
        """The scores by name."""
        right, predicted, actual = (
            each.cpu().double() for each in (self.right, self.predicted, self.actual)
        )
        accuracy = float(right.sum() / actual.sum())
        macro, weighted = _f1(right, predicted, actual)
        return {
            "accuracy": accuracy,
            "f1": macro,
            "f1_macro": macro,
            "f1_micro": accuracy,  # of one class a text it is the same
            "f1_weighted": weighted,
            **_matthews(right, predicted, actual),
        }


class SeveralClassScores(Metric):
    """F1 (micro, macro and weighted) of any number of classes a text; how many have all right.

    A class applies where its logit is over 0. Classes that are neither held out nor predicted do
    not count in macro F1.

    Args:
        num_classes: Outputs of the model.
    """

    right: torch.Tensor
    predicted: torch.Tensor
    actual: torch.Tensor
    num_exact: torch.Tensor
    num_rows: torch.Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        _add_counts(self, ("right", "predicted", "actual"), num_classes)
        _add_counts(self, ("num_exact", "num_rows"), 1)

    def update(self, logits: torch.Tensor, wanted: torch.Tensor) -> None:
        """Count a batch: logits, and what applies, 0 or 1, both [batch, classes]."""
        decided, applies = logits > 0, wanted.bool()
        self.right = self.right + (decided & applies).sum(0)
        self.predicted = self.predicted + decided.sum(0)
        self.actual = self.actual + applies.sum(0)
        self.num_exact = self.num_exact + (decided == applies).all(1).sum()
        self.num_rows = self.num_rows + len(logits)

    def compute(self) -> dict[str, float]:
        """The scores by name."""
        right, predicted, actual = (
            each.cpu().double() for each in (self.right, self.predicted, self.actual)
        )
        scores = {"accuracy": float(self.num_exact / self.num_rows)}
        if actual.any():
            macro, weighted = _f1(right, predicted, actual)
            micro = float(2 * right.sum() / (predicted.sum() + actual.sum()))
            scores |= {"f1_micro": micro, "f1_macro": macro, "f1_weighted": weighted}
        return scores


class RankingScores(Metric):
    """AUROC: of each class against the rest, and their mean.

    By Mann and Whitney's U, ties counting half. Classes of which all texts are, or none, do not
    count. All scores are kept, up to a number of them; above, it is left out.

    Args:
        is_exclusive: Whether the classes exclude one another: a text's class is ranked by its
            probability among them, and else by its logit.
    """

    scores: list[torch.Tensor]
    wanted: list[torch.Tensor]

    def __init__(self, *, is_exclusive: bool) -> None:
        super().__init__()
        self._is_exclusive = is_exclusive
        self._num_scores = 0
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("wanted", [], dist_reduce_fx="cat")

    def update(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Keep a batch: logits [batch, classes]; classes, [batch], or 0 and 1 as the logits are."""
        self._num_scores += logits.numel()
        if self._num_scores > MOST_SCORES:
            self.scores, self.wanted = [], []
            return
        self.scores.append(logits)
        self.wanted.append(labels)

    def compute(self) -> dict[str, float]:
        """`auroc`, where it is defined."""
        if not self.scores:
            return {}
        logits, labels = dim_zero_cat(self.scores).double(), dim_zero_cat(self.wanted)
        if self._is_exclusive and logits.shape[1] == 2:
            # the two columns say the same, and this one is exact: equal scores stay equal
            each = [_auroc(logits[:, 1] - logits[:, 0], labels == 1)]
        elif self._is_exclusive:
            # in float64: in float32 what is almost sure would be as likely as what is quite sure
            columns = logits.log_softmax(1).T.contiguous()
            each = [_auroc(column, labels == number) for number, column in enumerate(columns)]
        else:
            columns, flags = logits.T.contiguous(), labels.bool().T.contiguous()
            each = [_auroc(*pair) for pair in zip(columns, flags, strict=True)]
        found = [value for value in each if value is not None]
        return {"auroc": float(torch.stack(found).mean())} if found else {}

    def reset(self) -> None:
        """Start anew."""
        super().reset()
        self._num_scores = 0


class NumberScores(Metric):
    """Pearson's and Spearman's correlation, R2, and squared, root and absolute mean errors."""

    predictions: list[torch.Tensor]
    numbers: list[torch.Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("predictions", [], dist_reduce_fx="cat")
        self.add_state("numbers", [], dist_reduce_fx="cat")

    def update(self, predictions: torch.Tensor, numbers: torch.Tensor) -> None:
        """Keep a batch: both [batch]."""
        self.predictions.append(predictions)
        self.numbers.append(numbers)

    def compute(self) -> dict[str, float]:
        """The scores by name."""
        found = dim_zero_cat(self.predictions).double()
        wanted = dim_zero_cat(self.numbers).double()
        errors = found - wanted
        mse = float(errors.square().mean())
        scores = {"mse": mse, "rmse": mse**0.5, "mae": float(errors.abs().mean())}
        if _is_constant(wanted):
            return scores
        scores["r2"] = 1.0 - mse / float(wanted.var(correction=0))
        scores["pearson"] = _correlation("pearson", found, wanted)
        scores["spearman"] = _correlation("spearman", _mid_ranks(found), _mid_ranks(wanted))
        return scores


def _add_counts(metric: Metric, names: tuple[str, ...], size: int) -> None:
    for name in names:
        metric.add_state(name, torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")


def _f1(right: torch.Tensor, predicted: torch.Tensor, actual: torch.Tensor) -> tuple[float, float]:
    """The mean of the classes' F1, and that which is weighted by how many texts each has."""
    seen = predicted + actual
    each = 2 * right / seen.clamp(min=1)
    return float(each[seen > 0].mean()), float((each * actual).sum() / actual.sum())


def _matthews(
    right: torch.Tensor, predicted: torch.Tensor, actual: torch.Tensor
) -> dict[str, float]:
    """`mcc`, where there are two classes to be told apart."""
    count = actual.sum()
    if (actual == count).any():
        return {}
    if (predicted == count).any():
        return {"mcc": _undefined("mcc", "one class is predicted of all texts")}
    together = right.sum() * count - (predicted * actual).sum()
    apart = [count.square() - each.square().sum() for each in (predicted, actual)]
    return {"mcc": _bounded(together / (apart[0].sqrt() * apart[1].sqrt()))}


def _auroc(scores: torch.Tensor, is_one: torch.Tensor) -> torch.Tensor | None:
    """How surely ones rank above others, where there are both."""
    ones, others = scores[is_one].sort().values, scores[~is_one]
    if not len(ones) or not len(others):
        return None
    # the ones alone are put in order: of many classes they are few
    below = torch.searchsorted(ones, others) + torch.searchsorted(ones, others, right=True)
    return 1.0 - below.double().mean() / (2 * len(ones))


def _mid_ranks(values: torch.Tensor) -> torch.Tensor:
    """The rank of each value, from 1/2; of equal ones the mean of theirs."""
    ordered = values.sort().values
    below = torch.searchsorted(ordered, values)
    return (below + torch.searchsorted(ordered, values, right=True)).double() / 2


def _correlation(name: str, found: torch.Tensor, wanted: torch.Tensor) -> float:
    if _is_constant(found):
        return _undefined(name, "all predictions are the same")
    found, wanted = found - found.mean(), wanted - wanted.mean()
    return _bounded((found * wanted).sum() / (found.norm() * wanted.norm()))


def _bounded(correlation: torch.Tensor) -> float:
    """What rounding takes beyond 1 is 1."""
    return float(correlation.clamp(-1.0, 1.0))


def _is_constant(values: torch.Tensor) -> bool:
    return bool((values == values[0]).all())


def _undefined(name: str, reason: str) -> float:
    """What counts as a score that such predictions leave undefined: they tell nothing."""
    log.info("metric_undefined", metric=name, reason=reason, counted_as=0.0)
    return 0.0


def scores_of_classes(num_classes: int) -> dict[str, Metric]:
    """What is measured of one class a text."""
    return {
        "classes": ClassScores(num_classes),
        "ranking": RankingScores(is_exclusive=True),
    }


def scores_of_several_classes(num_classes: int) -> dict[str, Metric]:
    """What is measured of any number of classes a text."""
    return {
        "classes": SeveralClassScores(num_classes),
        "ranking": RankingScores(is_exclusive=False),
    }


def scores_of_numbers() -> dict[str, Metric]:
    """What is measured of a number a text."""
    return {"numbers": NumberScores()}
