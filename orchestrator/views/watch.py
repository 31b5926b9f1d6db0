"""Views of a study while it runs: a live table on a terminal, a line an event anywhere else.

Invariant: a view only draws statuses; what it shows can be had as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.status import EndedTrial, RunningTrial, StudyStatus, UnreadableStudy
from orchestrator.views.ps import printable
from orchestrator.views.used_budgets import limit_lines
from workers.protocol.states import Wish

_STYLES = {
    "complete": "green",
    "pruned": "yellow",
    "failed": "red",
    "dead": "bold red",
    "cancelled": "magenta",
}


class View(Protocol):
    """Something that shows statuses for as long as its `with` block runs."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def update(self, status: StudyStatus) -> None:
        """Show a newer status."""

    def say(self, text: str) -> None:
        """Show a message."""


def open_view(console: Console | None = None) -> View:
    """The view that suits the console: live on a terminal, plain lines elsewhere."""
    console = console or Console()
    return LiveView(console) if console.is_terminal else PlainView(console)


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
        self._ended_by: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, status: StudyStatus) -> None:
        """Print the trials that ended since the last status."""
        if self._shown is None:
            self._shown = set()
            self._console.print(headline(status), highlight=False, soft_wrap=True)
        elif state_text(status) != self._state:
            self.say(f"{status.study} is {state_text(status)}")
        self._state = state_text(status)
        if status.stalled not in {None, self._stalled}:
            self.say(f"stalled: {status.stalled}")
        self._stalled = status.stalled
        for reason in set(status.waits_for) - self._waits_for:
            self.say(f"waits: {printable(reason)}")
        self._waits_for = set(status.waits_for)
        self._tell_activities(status)
        if status.ended_by not in {None, self._ended_by}:
            self.say(f"no further trial begins: {printable(str(status.ended_by))}")
        self._ended_by = status.ended_by
        for reason in status.put_aside:
            if reason not in self._put_aside:
                self.say(f"takes no trials: {reason}")
        self._put_aside = status.put_aside
        for trial in status.recent:
            if trial.number not in self._shown:
                self._shown.add(trial.number)
                text = f"{ended_line(trial, status)}  [{status.num_ended}/{status.wanted}]"
                self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _tell_activities(self, status: StudyStatus) -> None:
        """Print what trials do that make no steps; of each, what is new."""
        told = {each.number: each.activity for each in status.running if each.activity is not None}
        for number, activity in told.items():
            if self._activities.get(number) != activity:
                self.say(f"trial {number}: {printable(activity)}")
        self._activities = told

    def say(self, text: str) -> None:
        """Print a message."""
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)


class LiveView:
    """Draws the study in place: progress, best trial, what runs, what ended last."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._message = "waiting for the first worker"
        self._status: StudyStatus | None = None
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def update(self, status: StudyStatus) -> None:
        """Draw a newer status."""
        self._status = status
        if status.slots and self._message.startswith("waiting"):
            self._message = ""

    def say(self, text: str) -> None:
        """Show a message below the table."""
        self._message = text

    def _render(self) -> RenderableType:
        if self._status is None:
            return Text(self._message, style="dim")
        parts = draw(self._status, width=self._console.width)
        return Group(parts, Text(self._message, style="dim")) if self._message else parts


def draw(status: StudyStatus, *, width: int) -> Group:
    """A status as a few lines and a table."""
    bar = ProgressBar(total=status.wanted, completed=status.num_ended, width=min(60, width - 20))
    progress = Table.grid(padding=(0, 1))
    progress.add_row(bar, f"{status.num_ended}/{status.wanted} trials")
    parts: list[RenderableType] = [Text.from_markup(headline(status)), progress]
    if status.best is not None:
        value = format_values(status.best.value, status.best.values, status)
        parts.append(
            Text(f"best     trial {status.best.number}  {value}{_of_front(status)}", "green")
        )
        parts.append(Text(f"         {format_params(status.best.params)}", style="dim"))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("trial", "state", "value", "step", "parameters"):
        table.add_column(column, no_wrap=column != "parameters", overflow="ellipsis")
    for running in status.running:
        table.add_row(*_running_row(running))
    for ended in reversed(status.recent[-5:]):
        table.add_row(*_ended_row(ended, status))
    parts.append(table)
    return Group(
        *parts, *limit_lines(status), *_refusing(status), *_stalled(status), *_set_aside(status)
    )


def draw_studies(found: Sequence[StudyStatus | UnreadableStudy]) -> Table:
    """A line on each study; of one that cannot be read or stands still, why."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("study", "state", "trials", "running", "best", ""):
        table.add_column(column)
    for each in found:
        table.add_row(*map(Text, _study_row(each)))
    return table


def _study_row(found: StudyStatus | UnreadableStudy) -> tuple[str, ...]:
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


def summary(status: StudyStatus) -> Group:
    """What a study came to: the best trial, its parameters, the top five, and where to look."""
    counted = ", ".join(f"{count} {name}" for name, count in status.trials.items() if count)
    parts: list[RenderableType] = [
        Text(""),
        Text(
            f"{status.study} {status.state}: {counted or 'no trials'} in"
            f" {status.wall_seconds:.0f} s ({status.busy_seconds:.0f} s of training)"
        ),
    ]
    if status.best is None:
        none = "no complete trial keeps to the constraints"
        return Group(
            *parts,
            Text(none if status.infeasible else "no trial is complete", style="red"),
            *_errors(status),
            *limit_lines(status),
            *_refusing(status),
            *_stalled(status),
            *_set_aside(status),
        )
    value = format_values(status.best.value, status.best.values, status)
    best = f"best: trial {status.best.number}  {value}{_of_front(status)}"
    parts.append(Text(best, style="bold green"))
    parts += [Text(f"  {name} = {_short(value)}") for name, value in status.best.params.items()]
    title = "top trials" if status.front is None else "Pareto front, by the first value"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in ("trial", "value", "seconds", "parameters"):
        table.add_column(column, justify="left" if column == "parameters" else "right")
    for trial in status.top:
        table.add_row(
            str(trial.number),
            format_values(trial.value, trial.values, status, named=False),
            f"{trial.seconds:.1f}",
            format_params(trial.params),
        )
    parts += [Text(""), table, *_errors(status), *limit_lines(status), *_refusing(status)]
    parts += _set_aside(status)
    if status.results is not None and Path(status.results).is_dir():
        parts += [Text(""), Text(f"results: {status.results}/<trial>/result")]
    return Group(*parts)


def _of_front(status: StudyStatus) -> str:
    """What else there is to say of the best trial."""
    if status.front is None:
        return ""
    return f"  (in the first value; {status.front} on the Pareto front)"


def state_text(status: StudyStatus) -> str:
    """What a study does, and what it was asked to do where that takes a while."""
    if status.wish is Wish.STOP and not status.is_over:
        return f"{status.state}, stopping"
    return status.state.value


def headline(status: StudyStatus) -> str:
    """One line on the study as a whole."""
    counted = ", ".join(f"{count} {name}" for name, count in status.trials.items() if count)
    slots = f"{status.slots} slot{'' if status.slots == 1 else 's'}"
    losses = f"  {_count_losses(status.losses)}" if status.losses else ""
    memory = f"  {status.out_of_memory} out of memory" if status.out_of_memory else ""
    infeasible = f" ({status.infeasible} infeasible)" if status.infeasible else ""
    return (
        f"[bold]{status.study}[/bold] {state_text(status)}  {slots}  {status.wall_seconds:.0f} s"
        f"  {counted or 'no trials yet'}{infeasible}{memory}{losses}"
    )


def ended_line(trial: EndedTrial, status: StudyStatus) -> str:
    """One line on a trial that has ended."""
    value = format_values(trial.value, trial.values, status)
    attempts = f", attempt {trial.attempts}" if trial.attempts > 1 else ""
    losses = f", {_count_losses(trial.losses)}" if trial.losses else ""
    line = f"trial {trial.number} {trial.state} {value} ({trial.seconds:.1f} s{attempts}{losses})"
    if trial.error is not None:
        return f"{line} {trial.error.splitlines()[0]}"
    return f"{line}  {format_params(trial.params)}"


def _count_losses(count: int) -> str:
    return "1 process lost" if count == 1 else f"{count} processes lost"


def format_values(
    value: float | None, values: list[float] | None, status: StudyStatus, *, named: bool = True
) -> str:
    """The values of a trial, with the names of their metrics where the study has them."""
    found = values if value is None else [value]
    if not found:
        return ""
    names = status.metrics if named and len(status.metrics) == len(found) else []
    texts = [f"{each:.6g}" for each in found]
    return (
        ", ".join(f"{name}={text}" for name, text in zip(names, texts, strict=True))
        if names
        else ", ".join(texts)
    )


def format_params(params: Mapping[str, Any]) -> str:
    """Parameters on one line."""
    return " ".join(f"{name}={_short(value)}" for name, value in params.items())


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _running_row(trial: RunningTrial) -> tuple[str, ...]:
    value = "" if trial.value is None else f"{trial.value:.6g}"
    state = "running" if trial.attempt == 1 else f"running, attempt {trial.attempt}"
    if trial.losses:
        state = f"{state}, {_count_losses(trial.losses)}"
    note = format_params(trial.params) if trial.activity is None else printable(trial.activity)
    return str(trial.number), state, value, str(trial.step), note


def _ended_row(trial: EndedTrial, status: StudyStatus) -> tuple[str | Text, ...]:
    value = format_values(trial.value, trial.values, status, named=False)
    note = (trial.error or format_params(trial.params)).splitlines() or [""]
    state = Text(trial.state, style=_STYLES.get(trial.state, ""))
    return str(trial.number), state, value, "", note[0]


def _stalled(status: StudyStatus) -> list[RenderableType]:
    """Why the study stands still, if it does."""
    waits = [Text(f"waits: {printable(reason)}", style="yellow") for reason in status.waits_for]
    if status.stalled is None:
        return [*waits]
    return [Text(f"stalled: {status.stalled}", style="bold red"), *waits]


def _refusing(status: StudyStatus) -> list[RenderableType]:
    """Slots that take no trials, workers with other code, and what lies beside; a line each."""
    return [
        *(Text(f"takes no trials: {reason}", style="red") for reason in status.put_aside),
        *(Text(f"other code: {reason}", style="yellow") for reason in status.other_code),
        *(Text(f"on_end: {reason}", style="red") for reason in [status.end_problem] if reason),
        *(
            Text(f"as it was in a narrower space: study {name} of its storage", style="dim")
            for name in [status.former]
            if name
        ),
    ]


def _set_aside(status: StudyStatus) -> list[RenderableType]:
    """What trials told and could not be taken in, one line each."""
    return [Text(f"not taken in: {reason}", style="red") for reason in status.set_aside]


def _errors(status: StudyStatus) -> list[RenderableType]:
    """The last few errors, one line each; not of trials that never began."""
    failed = [each for each in status.recent if each.error and each.state != "cancelled"]
    return [Text(ended_line(trial, status), style="red") for trial in failed[-3:]]
