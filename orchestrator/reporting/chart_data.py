"""What a report's charts are drawn from: the columns and curves of the page, thinned out once more.

Invariant: the size has a bound that does not grow with a study's parameters, and each trial keeps
its state and its values, so that the history and the best so far are whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from optuna.trial import FrozenTrial
from pydantic import BaseModel

from orchestrator.dashboard.trial_columns import TrialColumns
from orchestrator.reporting.contour import Contour, contour

#: Complete trials whose parameters are drawn, and how many of them are the best ones.
MAX_POINTS: Final = 2000
_MAX_BEST: Final = 500

#: Parameters that are drawn: the most important ones.
MAX_PARAMS: Final = 12

_COMPLETE: Final = "C"


class ChartData(BaseModel):
    """The columns of all trials, by number."""

    states: str
    """A letter each, as the page has them."""
    values: list[list[float | None]]
    last: list[float | None]
    """The last reported values."""
    params: dict[str, list[Any]]
    """By name, the most important first; None where a trial is not drawn."""
    num_params: int
    """How many parameters there are in all."""
    num_drawn: int
    """Complete trials whose parameters are drawn."""
    contour: Contour | None = None


def chart_data(
    trials: Sequence[FrozenTrial],
    best: Sequence[FrozenTrial],
    importances: Mapping[str, float],
    logs: frozenset[str],
) -> ChartData:
    """The columns of a study.

    Args:
        trials: All of it, by number.
        best: The best ones, the best first.
        importances: Of the first value, by parameter, the largest first.
        logs: Parameters whose axis is logarithmic.
    """
    columns = TrialColumns()
    columns.take(trials, 1)
    found = columns.since(-1)
    complete = [at for at, letter in enumerate(found["states"]) if letter == _COMPLETE]
    drawn = _drawn(complete, [trial.number for trial in best])
    names = [name for name in importances if name in found["params"]]
    names += [name for name in found["params"] if name not in importances]
    params = {name: _only(found["params"][name], drawn) for name in names[:MAX_PARAMS]}
    values = found["values"]
    return ChartData(
        states=found["states"],
        values=values,
        last=found["last"],
        params=params,
        num_params=len(names),
        num_drawn=len(drawn),
        contour=contour(params, values[0], sorted(drawn), logs) if values else None,
    )


def _drawn(complete: Sequence[int], best: Sequence[int]) -> set[int]:
    """The best trials, and others evenly chosen."""
    if len(complete) <= MAX_POINTS:
        return set(complete)
    drawn = set(best[:_MAX_BEST])
    others = [at for at in complete if at not in drawn]
    wanted = MAX_POINTS - len(drawn)
    return drawn | {others[at * len(others) // wanted] for at in range(wanted)}


def _only(column: Sequence[Any], drawn: set[int]) -> list[Any]:
    return [value if at in drawn else None for at, value in enumerate(column)]
