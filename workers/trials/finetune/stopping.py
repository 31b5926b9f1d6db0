"""What the evaluations so far say: which is the result, and whether training on is of use.

Invariant: both follow from the evaluations alone, so that a resumed training stops where an
undisturbed one does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from workers.protocol.training_options import EarlyStopping

Direction = Literal["maximize", "minimize"]


def best_of(
    history: Sequence[Mapping[str, float]], metric: str, direction: Direction
) -> Mapping[str, float]:
    """The best of some evaluations; of equally good ones the first."""
    choose = max if direction == "maximize" else min
    return choose(history, key=lambda each: each[metric])


def is_exhausted(values: Iterable[float], direction: Direction, rule: EarlyStopping | None) -> bool:
    """Whether so many evaluations in a row were no better than the best that the rule is met.

    Args:
        values: What was measured, in its order, without NaN.
        direction: Which way is better.
        rule: The study's; None never stops.
    """
    if rule is None:
        return False
    sign = 1.0 if direction == "maximize" else -1.0
    best, num_without_gain = None, 0
    for value in values:
        if best is None or value * sign > best + rule.min_delta:
            best, num_without_gain = value * sign, 0
        else:
            num_without_gain += 1
    return num_without_gain >= rule.patience
