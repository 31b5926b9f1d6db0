"""The table of what runs: a line a slot, as wide and as long as there is room for.

Invariant: no line is wider than it may be, and what does not fit is counted, not hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from rich.text import Text

from orchestrator.status import RunningTrial
from orchestrator.views.amounts import brief_span, size
from orchestrator.views.ps import printable
from orchestrator.views.study_text import count_losses, format_params

#: For how long an estimate goes beyond what a trial told.
_ESTIMATED_SECONDS: Final = 60.0

#: After which a step that nobody can estimate is said to be old.
_OLD_SECONDS: Final = 15.0


class _Column(NamedTuple):
    title: str
    least_width: int
    """Of the screen on which it is shown."""
    cell: Callable[[RunningTrial, float], str]
    is_right: bool = False
    most: int = 14


def slot_lines(running: Sequence[RunningTrial], width: int, count: int, now: float) -> list[Text]:
    """A head, and a line a trial.

    Args:
        running: What runs.
        width: Columns of the screen.
        count: How many lines there is room for.
        now: Seconds since 1970.
    """
    if not running or count < 2:
        return []
    shown = running if len(running) < count else running[: count - 2]
    columns = [each for each in _COLUMNS if width >= each.least_width]
    if len({_host(each) for each in running}) < 2:
        columns = [each for each in columns if each.title != "host"]
    rows = [[column.cell(each, now)[: column.most] for column in columns] for each in shown]
    widths = [
        max(len(column.title), *(len(row[index]) for row in rows))
        for index, column in enumerate(columns)
    ]
    lines = [Text(_joined([each.title for each in columns], columns, widths), "dim")]
    lines += [
        Text(f"{_joined(row, columns, widths)}  {_note(each)}")
        for row, each in zip(rows, shown, strict=True)
    ]
    if len(shown) < len(running):
        lines.append(Text(f"and {len(running) - len(shown)} more that run", "dim"))
    return lines


def _joined(cells: Sequence[str], columns: Sequence[_Column], widths: Sequence[int]) -> str:
    return " ".join(
        f"{cell:>{width}}" if column.is_right else f"{cell:<{width}}"
        for cell, column, width in zip(cells, columns, widths, strict=True)
    )


def _host(trial: RunningTrial) -> str:
    return "" if trial.owner is None else printable(trial.owner.rsplit(":", 3)[0])


def _slot(trial: RunningTrial) -> str:
    slot = printable(trial.slot or "")
    return slot.replace("cpu slot ", "cpu ") if slot.startswith("cpu") else f"gpu {slot}".strip()


def _attempt(trial: RunningTrial, _now: float) -> str:
    return "" if trial.attempt == 1 else str(trial.attempt)


def _step(trial: RunningTrial, now: float) -> str:
    """How far it is: as it told, or, between two words of it, by its pace."""
    age = now - trial.step_at_ms / 1000 if trial.step_at_ms else 0.0
    step, sign = float(trial.step), ""
    if trial.steps_per_second and age > 1.0:
        step += trial.steps_per_second * min(age, _ESTIMATED_SECONDS)
        sign = "~" if int(step) > trial.step else ""
    of = "" if trial.total_steps is None else f"/{trial.total_steps}"
    step = step if trial.total_steps is None else min(step, float(trial.total_steps))
    if not trial.step and not trial.step_at_ms:
        return "" if not of else f"0{of}"
    old = f" {brief_span(age)} ago" if not sign and age > _OLD_SECONDS else ""
    return f"{sign}{int(step)}{of}{old}"


def _rate(trial: RunningTrial, _now: float) -> str:
    if trial.examples_per_second:
        return f"{trial.examples_per_second:.3g} ex/s"
    return f"{trial.steps_per_second:.3g} st/s" if trial.steps_per_second else ""


def _note(trial: RunningTrial) -> str:
    if trial.activity is not None:
        return printable(trial.activity)
    losses = f"{count_losses(trial.losses)}  " if trial.losses else ""
    return losses + printable(format_params(trial.params))


_COLUMNS: Final = (
    _Column("host", 90, lambda trial, _: _host(trial), most=16),
    _Column("slot", 60, lambda trial, _: _slot(trial), most=10),
    _Column("trial", 0, lambda trial, _: str(trial.number), is_right=True),
    _Column("try", 50, _attempt, is_right=True),
    _Column("step", 0, _step, is_right=True, most=16),
    _Column("rate", 76, _rate, is_right=True),
    _Column(
        "mem", 84, lambda trial, _: size(trial.memory_bytes) if trial.memory_bytes else "",
        is_right=True,
    ),
    _Column(
        "lease", 68,
        lambda trial, now: brief_span(trial.lease_until_ms / 1000 - now)
        if trial.lease_until_ms else "",
        is_right=True,
    ),
    _Column(
        "value", 0, lambda trial, _: "" if trial.value is None else f"{trial.value:.5g}",
        is_right=True,
    ),
)  # fmt: skip
