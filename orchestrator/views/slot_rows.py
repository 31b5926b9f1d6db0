"""The table of what runs: a line a slot, as wide and as long as there is room for.

Invariant: no line is wider than it may be, and what does not fit is counted, not hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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


#: Columns that the parameters of a trial want beside the rest; with fewer they go below it.
_NOTE_WIDTH: Final = 24

#: From so many on all columns are shown.
_ALL_WIDTH: Final = 80


class _Column(NamedTuple):
    title: str
    rank: int
    """What does not fit is shortened, or left out, from the highest on."""
    cell: Callable[[RunningTrial, float], str]
    is_right: bool = False
    most: int = 16
    least: int = 16
    """To how many signs it may be shortened; the end of it stays."""


def slot_lines(running: Sequence[RunningTrial], width: int, count: int, now: float) -> list[Text]:
    """A head, and a line a trial, or two, where its parameters have no room beside it.

    Args:
        running: What runs.
        width: Columns of the screen.
        count: How many lines there is room for.
        now: Seconds since 1970.
    """
    if not running or count < 2:
        return []
    shown = running if len(running) < count else running[: count - 2]
    has_room = 2 * len(running) < count
    table = _Table(shown, width if has_room or width >= _ALL_WIDTH else width - _NOTE_WIDTH, now)
    notes = [_note(each) for each in shown]
    is_below = has_room and table.width + 2 + max(map(len, notes)) > width
    lines = [Text(table.head, "dim")]
    for row, note in zip(table.rows, notes, strict=True):
        lines.append(Text(row if is_below else f"{row}  {note}"))
        if is_below and note:
            lines.append(Text(f"      {note}", "dim"))
    if len(shown) < len(running):
        lines.append(Text(f"and {len(running) - len(shown)} more that run", "dim"))
    return lines


class _Table:
    """The columns that fit, as wide as they can be."""

    def __init__(self, shown: Sequence[RunningTrial], width: int, now: float) -> None:
        found = [
            (column, [column.cell(trial, now)[: column.most] for trial in shown])
            for column in _COLUMNS
        ]
        wide = {each: max(len(each.title), *map(len, cells)) for each, cells in found}
        for column in sorted(_COLUMNS, key=lambda each: -each.rank):
            excess = _width_of(wide) - width
            if excess > 0 and column.rank:
                least = min(wide[column], max(column.least, len(column.title)))
                wide[column] = max(least, wide[column] - excess)
        for column in sorted(_COLUMNS, key=lambda each: -each.rank):
            if _width_of(wide) > width and column.rank:
                del wide[column]
        self.width = _width_of(wide)
        columns = [each for each in _COLUMNS if each in wide]
        cells = [cells for each, cells in found if each in wide]
        self.head = _joined([each.title for each in columns], wide)
        self.rows = [_joined(row, wide) for row in zip(*cells, strict=True)]


def _width_of(wide: Mapping[_Column, int]) -> int:
    return sum(wide.values()) + len(wide) - 1


def _joined(cells: Sequence[str], wide: Mapping[_Column, int]) -> str:
    columns = [each for each in _COLUMNS if each in wide]
    cut = [(cell[-wide[each] :], each) for cell, each in zip(cells, columns, strict=True)]
    return " ".join(
        cell.rjust(wide[each]) if each.is_right else cell.ljust(wide[each]) for cell, each in cut
    )


def _host(trial: RunningTrial) -> str:
    if trial.owner is None:
        return ""
    return printable(trial.owner.rsplit(":", 3)[0].partition(".")[0])


def _slot(trial: RunningTrial) -> str:
    slot = printable(trial.slot or "").partition(" (")[0]  # `ps` has the GPU's UUID, too
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
        return f"{_three_digits(trial.examples_per_second)} ex/s"
    return f"{_three_digits(trial.steps_per_second)} st/s" if trial.steps_per_second else ""


def _three_digits(rate: float) -> str:
    return f"{rate / 1000:.3g}k" if 999.5 <= rate < 1e6 else f"{rate:.3g}"


def _note(trial: RunningTrial) -> str:
    if trial.activity is not None:
        return printable(trial.activity)
    losses = f"{count_losses(trial.losses)}  " if trial.losses else ""
    return losses + printable(format_params(trial.params))


_COLUMNS: Final = (
    _Column("host", 8, lambda trial, _: _host(trial), most=64, least=8),
    _Column("slot", 7, lambda trial, _: _slot(trial), most=10, least=6),
    _Column("trial", 0, lambda trial, _: str(trial.number), is_right=True),
    _Column("try", 1, _attempt, is_right=True),
    _Column("step", 0, _step, is_right=True),
    _Column("rate", 4, _rate, is_right=True),
    _Column(
        "mem", 5, lambda trial, _: size(trial.memory_bytes) if trial.memory_bytes else "",
        is_right=True,
    ),
    _Column(
        "lease", 3,
        lambda trial, now: brief_span(trial.lease_until_ms / 1000 - now)
        if trial.lease_until_ms else "",
        is_right=True,
    ),
    _Column(
        "value", 2, lambda trial, _: "" if trial.value is None else f"{trial.value:.5g}",
        is_right=True,
    ),
)  # fmt: skip
