"""Views of a study while it runs: a live table on a terminal, a line an event anywhere else.

Invariant: a view only draws statuses; what it shows can be had as JSON.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol, Self, TypeAlias

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from orchestrator.status import Best, FormerStudy, StudyStatus, UnreadableStudy
from orchestrator.storage.event_history import EventHistory
from orchestrator.views.console import open_console
from orchestrator.views.encodable import encodable, encodable_line
from orchestrator.views.explain import reason
from orchestrator.views.problems import refusing_lines, set_aside_lines, stalled_lines
from orchestrator.views.ps import printable
from orchestrator.views.screen import LiveView
from orchestrator.views.study_text import (
    ended_line,
    format_params,
    format_values,
    headline,
    of_front,
    short,
    state_text,
)
from orchestrator.views.used_budgets import limit_lines

#: What Ctrl-C does, in as many characters as a narrow terminal has.
RUN_HINT: Final = "Ctrl-C: trials save and stop; twice: at once"
WATCH_HINT: Final = "Ctrl-C ends watching; the study goes on"


class View(Protocol):
    """Something that shows statuses for as long as its `with` block runs."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def update(self, status: StudyStatus) -> None:
        """Show a newer status."""

    def say(self, text: str) -> None:
        """Show a message."""

    def measure(self, history: EventHistory) -> None:
        """Show what the study's events tell beyond, where there is room for it."""


def open_view(console: Console | None = None, hint: str = "") -> View:
    """The view that suits the console: live on a terminal, plain lines elsewhere.

    Args:
        console: By default the standard output.
        hint: What Ctrl-C does; shown on a terminal.
    """
    console = console or open_console()
    is_live = console.is_terminal and not console.is_dumb_terminal
    return LiveView(console, hint) if is_live else PlainView(console)


class PlainView:
    """Prints one line for each trial that ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: set[int] | None = None
        self._state = ""
        self._stalled: str | None = None
        self._waits_for: set[str] = set()
        self._activities: dict[int, str] = {}
        self._put_aside: list[str] = []
        self._retried: set[tuple[int, int]] = set()
        self._ended_by: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, status: StudyStatus) -> None:
        """Print the trials that ended since the last status."""
        is_first = self._shown is None
        if is_first:
            self._print(headline(status), markup=True)
        self._tell_ended(status)  # before the state that the last of them ends in
        if not is_first and state_text(status) != self._state:
            self.say(f"{status.study} is {state_text(status)}")
        self._state = state_text(status)
        if status.stalled not in {None, self._stalled}:
            self.say(f"stalled: {status.stalled}")
        self._stalled = status.stalled
        for waited in set(status.waits_for) - self._waits_for:
            self.say(f"waits: {printable(waited)}")
        self._waits_for = set(status.waits_for)
        self._tell_activities(status)
        if status.ended_by not in {None, self._ended_by}:
            self.say(f"no further trial begins: {printable(str(status.ended_by))}")
        self._ended_by = status.ended_by
        for refusal in status.put_aside:
            if refusal not in self._put_aside:
                self.say(f"takes no trials: {refusal}")
        self._put_aside = status.put_aside
        self._tell_retried(status)

    def _tell_ended(self, status: StudyStatus) -> None:
        """Print which trials ended, and how."""
        shown, self._shown = self._shown or set(), {each.number for each in status.recent}
        for trial in status.recent:
            if trial.number not in shown:
                self.say(f"{ended_line(trial, status)}  [{status.num_ended}/{status.wanted}]")
        self._shown |= shown

    def _tell_activities(self, status: StudyStatus) -> None:
        """Print what trials do that make no steps; of each, what is new."""
        told = {each.number: each.activity for each in status.running if each.activity is not None}
        for number, activity in told.items():
            if self._activities.get(number) != activity:
                self.say(f"trial {number}: {printable(activity)}")
        self._activities = told

    def _tell_retried(self, status: StudyStatus) -> None:
        """Print which trials are to be tried again, and why."""
        retried = {(each.number, each.attempt) for each in status.retried}
        for each in status.retried:
            if (each.number, each.attempt) not in self._retried:
                why = reason(each.cause, each.detail)
                self.say(f"trial {each.number} goes on in attempt {each.attempt}: {why}")
        self._retried = retried

    def measure(self, history: EventHistory) -> None:
        """Lines are of what happens; reports have the sums."""

    def say(self, text: str) -> None:
        """Print a message."""
        self._print(text)

    def _print(self, text: str, *, markup: bool = False) -> None:
        told = encodable(printable(text), self._console.encoding)
        self._console.print(told, highlight=False, soft_wrap=True, markup=markup)


#: A line of `trialfleet studies`.
ListedStudy: TypeAlias = StudyStatus | UnreadableStudy | FormerStudy


def with_former(found: Sequence[StudyStatus | UnreadableStudy]) -> Sequence[ListedStudy]:
    """Studies, and after each that goes on in a wider space, those that were before it."""
    listed: list[ListedStudy] = []
    for each in found:
        listed.append(each)
        if isinstance(each, StudyStatus) and each.former is not None:
            latest = int(each.former.rpartition("@")[2])
            names = (f"{each.study}@{number}" for number in range(latest, 0, -1))
            listed += [FormerStudy(study=name, of=each.study) for name in names]
    return listed


def draw_studies(found: Sequence[ListedStudy]) -> Table:
    """A line on each study; of one that cannot be read or stands still, why."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("study", "state", "trials", "running", "best", ""):
        table.add_column(column)
    for each in found:
        table.add_row(*map(Text, _study_row(each)))
    return table


def _study_row(found: ListedStudy) -> tuple[str, ...]:
    if isinstance(found, FormerStudy):
        told = f"the former space of {found.of}, whose trials are copied there; read with Optuna"
        return (found.study, found.state, "", "", "", told)
    if isinstance(found, UnreadableStudy):
        return (found.study, found.state, "", "", "", found.reason)
    best = found.best
    return (
        found.study,
        state_text(found),
        f"{found.num_ended}/{found.wanted}",
        str(found.trials["running"]),
        "" if best is None else format_values(best.value, best.values, found),
        "; ".join(
            ([] if found.stalled is None else [f"stalled: {found.stalled}"]) + found.waits_for
        ),
    )


def print_summary(status: StudyStatus, console: Console) -> None:
    """Tell what a study came to, in lines that fit a terminal, or in whole ones elsewhere.

    A word that is wider than the terminal, such as a path, stays in one piece.
    """
    width = console.width if console.is_terminal else None
    console.print(summary(status, width, console.encoding), crop=False)


def summary(status: StudyStatus, width: int | None = None, encoding: str = "utf-8") -> Group:
    """What a study came to: the best trial, its parameters, the top five, and where to look.

    Args:
        status: The study, which is over.
        width: Of the terminal, if it is for one: what does not fit goes on below, indented, and of
            the parameters of the top five what does not fit is left out.
        encoding: Of whatever it is written to.
    """
    counted = ", ".join(f"{count} {name}" for name, count in status.trials.items() if count)
    headline = (
        f"{status.study} {status.state}: {counted or 'no trials'} in"
        f" {status.wall_seconds:.0f} s ({status.busy_seconds:.0f} s of training)"
    )
    above, top, below = [Text(""), Text(headline)], list[Text](), list[Text]()
    if status.best is None:
        above.append(Text(status.no_best, style="red"))
        below += stalled_lines(status)
    else:
        above += [*_best(status, status.best), Text("")]
        top = _top(status, width)
    below = [*_errors(status), *limit_lines(status), *refusing_lines(status), *below]
    below += set_aside_lines(status)
    if status.best is not None and status.results is not None and Path(status.results).is_dir():
        below += [Text(""), Text(f"results: {status.results}/<trial>/result")]
    lines = [*_hanging(above, width), *top, *_hanging(below, width)]
    return Group(*(encodable_line(line, encoding) for line in lines))


def _best(status: StudyStatus, best: Best) -> list[Text]:
    value = format_values(best.value, best.values, status)
    return [
        Text(f"best: trial {best.number}  {value}{of_front(status)}", style="bold green"),
        *(Text(f"  {name} = {short(value)}") for name, value in best.params.items()),
    ]


def _top(status: StudyStatus, width: int | None) -> list[Text]:
    """The best trials, a line each."""
    rows = [("trial", "value", "seconds", "parameters")]
    rows += [
        (
            str(trial.number),
            format_values(trial.value, trial.values, status, named=False),
            f"{trial.seconds:.1f}",
            format_params(trial.params),
        )
        for trial in status.top
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    lines = [Text("top trials" if status.front is None else "Pareto front, by the first value")]
    for *numbers, params in rows:
        cells = [cell.rjust(length) for cell, length in zip(numbers, widths, strict=True)]
        lines.append(Text("  ".join([*cells, params])))
    lines[0].stylize("italic")
    lines[1].stylize("bold")
    for line in lines:
        line.no_wrap, line.overflow = True, "ignore"
        if width is not None:
            line.truncate(width, overflow="ellipsis")
    return lines


def _hanging(lines: Sequence[Text], width: int | None) -> Iterator[Text]:
    """Lines, each in as many as it takes, further in from the second on; no word is broken."""
    for line in lines:
        plain = printable(line.plain)
        if width is not None:
            plain = textwrap.fill(
                plain,
                width,
                subsequent_indent=" " * (len(plain) - len(plain.lstrip()) + 2),
                break_long_words=False,
                break_on_hyphens=False,
            )
        yield Text(plain, line.style, no_wrap=True, overflow="ignore")


def _errors(status: StudyStatus) -> list[Text]:
    """The last few errors, one line each; not of trials that never began."""
    failed = [each for each in status.recent if each.error and each.state != "cancelled"]
    return [Text(ended_line(trial, status), style="red") for trial in failed[-3:]]
