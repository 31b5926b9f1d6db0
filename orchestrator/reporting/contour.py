"""A value over two parameters, laid between the trials: pure.

Between trials the value is that of the trials around, weighted by the inverse square of their
distance (Shepard, 1968), on axes that are as wide as the trials lie.

Invariant: the grid and the number of trials that it is laid from have a bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

#: Points of the grid along each axis, and trials that it is laid from.
_SIZE: Final = 40
_MAX_TRIALS: Final = 2000

#: With fewer trials there is nothing between them.
_LEAST_TRIALS: Final = 6

_Numbers = npt.NDArray[np.float64]


class Contour(BaseModel):
    """The value over a grid."""

    names: tuple[str, str]
    logs: tuple[bool, bool]
    """Which axes are logarithmic."""
    x: list[float]
    y: list[float]
    z: list[list[float]]
    """By `y`, then by `x`."""


def contour(
    params: dict[str, list[Any]],
    values: Sequence[float | None],
    places: Sequence[int],
    logs: frozenset[str],
) -> Contour | None:
    """The value over the first two parameters that are numbers; None where there are none.

    Values that no chart can place are None, and left out.

    Args:
        params: By name, the most important first: a value a trial.
        values: A value a trial.
        places: The trials that count.
        logs: Parameters whose axis is logarithmic.
    """
    names = [name for name, column in params.items() if _is_number(column, places)][:2]
    if len(names) < 2:
        return None
    rows = [
        (params[names[0]][at], params[names[1]][at], values[at])
        for at in places
        if None not in {params[names[0]][at], params[names[1]][at], values[at]}
    ]
    kept = np.asarray(rows[-_MAX_TRIALS:], dtype=np.float64)
    if len(kept) < _LEAST_TRIALS:
        return None
    is_log = [name in logs and bool((kept[:, at] > 0).all()) for at, name in enumerate(names)]
    x, y = (np.log10(kept[:, at]) if is_log[at] else kept[:, at] for at in range(2))
    if not 0.0 < np.ptp(x) < np.inf or not 0.0 < np.ptp(y) < np.inf:
        return None
    axes = [np.linspace(each.min(), each.max(), _SIZE) for each in (x, y)]
    shown = [10**axis if is_log[at] else axis for at, axis in enumerate(axes)]
    return Contour(
        names=(names[0], names[1]),
        logs=(is_log[0], is_log[1]),
        x=_rounded(shown[0]),
        y=_rounded(shown[1]),
        z=[_rounded(row) for row in _laid(x, y, kept[:, 2], axes[0], axes[1])],
    )


def _laid(x: _Numbers, y: _Numbers, z: _Numbers, across: _Numbers, up: _Numbers) -> _Numbers:
    """The value at each point of the grid, `(len(up), len(across))`."""
    wide = (across[:, None] - x) / np.ptp(x)
    high = (up[:, None] - y) / np.ptp(y)
    # a point on a trial has its value, and those beside it nearly so
    weights = 1.0 / (wide[None] ** 2 + high[:, None] ** 2 + 1e-4)
    weights /= weights.sum(axis=2, keepdims=True)  # first, so that no large value overflows
    found: _Numbers = weights @ z
    return found


def _is_number(column: Sequence[Any], places: Sequence[int]) -> bool:
    found = [column[at] for at in places if column[at] is not None]
    return bool(found) and not any(isinstance(value, (str, bool)) for value in found)


def _rounded(numbers: _Numbers) -> list[float]:
    return [float(f"{number:.5g}") for number in numbers]
