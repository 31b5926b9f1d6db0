"""What a study has used up of its budgets, and what ended it, as lines for people."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from rich.text import Text

from orchestrator.status import Budget, StudyStatus
from orchestrator.views.ps import printable
from orchestrator.views.study_text import asked_end

#: How many lines of a traceback are shown; its end tells the most.
_TRACEBACK_LINES: Final = 30


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


#: What each budget but the number of trials, which has a bar, is called, and how it is written.
_SHOWN: Final[Mapping[str, tuple[str, Callable[[float], str]]]] = {
    "wall_seconds": ("time", _duration),
    "slot_hours": ("slot-hours", "{:.4g}".format),
    "gpu_hours": ("GPU-hours", "{:.4g}".format),
}


def budget_line(budgets: Mapping[str, Budget]) -> str:
    """Each budget with what is used of it; empty where a study has none beside its trials."""
    return "   ".join(
        f"{name} {write(budgets[key].used)} of {write(budgets[key].allowed)}"
        for key, (name, write) in _SHOWN.items()
        if key in budgets
    )


def limit_lines(status: StudyStatus) -> list[Text]:
    """What is used of the budgets, and what ended the study, with the traceback of that."""
    found = [Text(f"used     {line}", style="dim")] if (line := budget_line(status.budgets)) else []
    if status.ended_by is not None:
        style = "yellow" if status.traceback is None else "bold red"
        found.append(Text(f"no further trial begins: {printable(status.ended_by)}", style=style))
    if (asked := asked_end(status)) is not None:
        found.append(Text(asked, style="yellow"))
    if status.traceback is not None:
        found += [Text(f"  {line}", style="red") for line in traceback_lines(status.traceback)]
    return found


def traceback_lines(traceback: str) -> list[str]:
    """The end of a traceback, made printable."""
    return [printable(line) for line in traceback.rstrip().splitlines()[-_TRACEBACK_LINES:]]
