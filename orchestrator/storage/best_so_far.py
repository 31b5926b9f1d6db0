"""The best value so far of a study, as a line that stays short however many trials there are.

Invariant: the last point is the best value now, and the line never gets worse.
"""

from __future__ import annotations

import math
from typing import Final

from workers.protocol.spec import Direction

#: Twice as many points as are kept at least.
_MOST: Final = 128


class BestSoFar:
    """Takes in values in the order in which their trials ended.

    Args:
        direction: Which values are better.
    """

    def __init__(self, direction: Direction) -> None:
        self._sign = 1.0 if direction == "maximize" else -1.0
        self._line: list[float] = []
        self._best: float | None = None
        #: of so many values, one is kept
        self._every = 1
        self._num_values = 0

    @property
    def points(self) -> list[float]:
        """The line: the first value, some between, and the best now."""
        is_kept = self._num_values % self._every == 0
        return self._line + ([] if self._best is None or is_kept else [self._best])

    def add(self, value: float) -> None:
        """Take in the value of a complete trial."""
        if math.isnan(value):
            return
        if self._best is None or (value - self._best) * self._sign > 0:
            self._best = value
        self._num_values += 1
        if self._num_values % self._every == 0:
            self._line.append(self._best)
        if len(self._line) >= _MOST:
            self._line = self._line[1::2]
            self._every *= 2
