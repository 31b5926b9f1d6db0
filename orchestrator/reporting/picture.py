"""A report as one picture, for a chat or a slide: history or Pareto front, what matters, time.

Drawn by matplotlib, which needs no browser.

Invariant: what users named is drawn as it is, no formula is made of it; nothing is left open.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.reporting.document import Report

#: Colours of the page by day.
_TEXT: Final = "#1b2130"
_SOFT: Final = "#5b6577"
_ACCENT: Final = "#2f5bd0"
_FAINT: Final = "#c3cddd"
_COMPLETE: Final = "#1a7a43"
_PRUNED: Final = "#96620f"
_LOST: Final = "#8f1d3f"

_STYLE: Final[Any] = {
    "text.parse_math": False, "font.size": 10, "text.color": _TEXT, "axes.labelcolor": _TEXT,
    "axes.edgecolor": _FAINT, "xtick.color": _SOFT, "ytick.color": _SOFT, "axes.titlesize": 11,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False,
}  # fmt: skip

#: Characters of a name, parameters that are drawn, and dots per inch.
_NAME: Final = 28
_MOST: Final = 10
_DPI: Final = 150

_PARTS: Final = (
    ("trained", "trained", _COMPLETE), ("warming", "getting ready", _PRUNED),
    ("lost", "lost", _LOST), ("running", "running", _ACCENT), ("idle", "idle", _FAINT),
)  # fmt: skip


def picture(report: Report) -> bytes:
    """The PNG, 1800 pixels wide."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a sign that no font has is drawn as a box
        figure = Figure(figsize=(12, 8), layout="constrained")
        axes = figure.subplot_mosaic(
            [["course"] * 2, ["importances", "time"]], height_ratios=[3, 2]
        )
        figure.suptitle(_short(report.study, 80), x=0.01, ha="left", fontweight="bold", fontsize=14)
        (_front if len(report.metrics) > 1 else _history)(axes["course"], report)
        _importances(axes["importances"], report)
        _time(axes["time"], report)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=_DPI)
    return file.getvalue()


def _history(axes: Axes, report: Report) -> None:
    axes.set(title="History", xlabel="trial", ylabel=_short(report.metrics[0]))
    charts = report.charts
    own, last = _drawable(charts.values[0] if charts.values else []), _drawable(charts.last)
    complete = [(at, own[at]) for at, state in enumerate(charts.states) if state == "C"]
    pruned = [(at, last[at]) for at, state in enumerate(charts.states) if state == "P"]
    for points, name, colour in ((complete, "complete", _COMPLETE), (pruned, "pruned", _PRUNED)):
        found = [(at, value) for at, value in points if not math.isnan(value)]
        if found:
            axes.scatter(
                [at for at, _ in found],
                [y for _, y in found],
                s=14,
                color=colour,
                alpha=0.7,
                label=name,
            )
    best = _best_so_far(complete, report.status.directions[0], len(charts.states))
    if not best:
        _say(axes, "no trial is complete yet")
        return
    x, y = [at for at, _ in best], [value for _, value in best]
    axes.step(x, y, where="post", color=_ACCENT, lw=2, label="best so far")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3)


def _best_so_far(
    complete: list[tuple[int, float]], direction: str, num_trials: int
) -> list[tuple[int, float]]:
    sign = -1.0 if direction == "maximize" else 1.0
    best: list[tuple[int, float]] = []
    for at, value in complete:
        if not math.isnan(value) and (not best or sign * value < sign * best[-1][1]):
            best.append((at, value))
    return [*best, (num_trials - 1, best[-1][1])] if best else []


def _front(axes: Axes, report: Report) -> None:
    names = [_short(name) for name in report.metrics]
    axes.set(title="Pareto front", xlabel=names[0], ylabel=names[1])
    charts = report.charts
    complete = [at for at, state in enumerate(charts.states) if state == "C"]
    if not complete:
        _say(axes, "no trial is complete yet")
        return
    front = set(report.front)
    for is_on, colour, size in ((False, _FAINT, 12), (True, _ACCENT, 36)):
        points = [at for at in complete if (at in front) is is_on]
        x, y = (_drawable([charts.values[axis][at] for at in points]) for axis in range(2))
        label = "Pareto front" if is_on else "dominated"
        axes.scatter(x, y, s=size, color=colour, label=label)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3)


def _importances(axes: Axes, report: Report) -> None:
    axes.set_title("What matters")
    shares: dict[str, float] = next(iter(report.importances["metrics"]), {})
    if not shares:
        _say(axes, str(report.importances["problem"] or "no parameter"))
        return
    names = list(shares)[:_MOST][::-1]
    axes.barh([_short(name) for name in names], [shares[name] for name in names], color=_ACCENT)
    axes.set(xlim=(0, 1), xlabel="share")


def _time(axes: Axes, report: Report) -> None:
    axes.set_title("Where the slot time went")
    spent, total = report.slot_time, report.slot_time.total
    found = [(said, colour, getattr(spent, name)) for name, said, colour in _PARTS]
    found = [each for each in found if each[2] > 0]
    if not found:
        _say(axes, "no event tells it")
        return
    names = [f"{name} {100 * seconds / total:.0f} %" for name, _, seconds in found][::-1]
    seconds = [each[2] / total for each in found][::-1]
    axes.barh(names, seconds, color=[each[1] for each in found][::-1])
    axes.set(xlim=(0, 1), xlabel="share of all slots")


def _say(axes: Axes, text: str) -> None:
    axes.text(
        0.5, 0.5, _short(text, 60), ha="center", va="center", transform=axes.transAxes, color=_SOFT
    )
    axes.set(xticks=[], yticks=[])


def _drawable(values: Sequence[float | None]) -> list[float]:
    """Values on an axis; what has no place there is not a number."""
    return [math.nan if value is None else value for value in values]


def _short(text: str, limit: int = _NAME) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
