"""A study on a terminal: progress, the best trial, a line a slot, what ended last, what is wrong.

Invariant: it fits: no line is wider and no drawing higher than the terminal, however much there is
to tell.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final, Self

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.control import Control
from rich.live import Live
from rich.text import Text

from orchestrator.status import EndedTrial, StudyStatus
from orchestrator.storage.event_history import EventHistory
from orchestrator.views.amounts import brief_span
from orchestrator.views.encodable import encodable_line
from orchestrator.views.explain import reason
from orchestrator.views.problems import problem_lines
from orchestrator.views.ps import printable
from orchestrator.views.slot_rows import slot_lines
from orchestrator.views.study_text import (
    count_texts,
    format_params,
    format_values,
    of_front,
    seconds_left,
    slots_text,
    state_text,
    trials_per_hour,
)
from orchestrator.views.trained_share import TrainedShare
from orchestrator.views.used_budgets import limit_lines
from workers.protocol.plain import describe_error

_STYLES: Final = {
    "complete": "green",
    "pruned": "yellow",
    "failed": "red",
    "dead": "bold red",
    "cancelled": "magenta",
}

_BARS: Final = "▁▂▃▄▅▆▇█"
_ASCII_BARS: Final = "_.-=*#"

#: How many of the latest ended trials are shown, where there is room.
_LATEST: Final = 5

#: How many lines a message may take.
_MESSAGE_LINES: Final = 3
_CUT: Final = "..."

#: Characters of why a status cannot be drawn.
_MAX_REASON: Final = 200


class Screen:
    """A status drawn for a terminal of whatever size it has then.

    Args:
        status: The study.
        message: What else is to be said, below it.
        hint: What Ctrl-C does.
        height: Lines, or None for as many as it takes.
        trained: The share of its slots' time that trained, if that is known.
    """

    def __init__(
        self,
        status: StudyStatus,
        message: str = "",
        hint: str = "",
        height: int | None = None,
        trained: float | None = None,
    ) -> None:
        self._status, self._message, self._hint, self._height = status, message, hint, height
        self._trained = trained

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it; what cannot be drawn ends nobody's study, nor the drawing of what comes next."""
        try:
            lines = self.lines(options.max_width, is_ascii=options.ascii_only)
        except Exception as error:  # noqa: BLE001 - of whatever a status holds
            why = f"not drawn: {describe_error(error, _MAX_REASON)}"
            told = [f"{self._status.study}  {self._status.state}", why]
            lines = [_fitted(Text(printable(each)), options.max_width) for each in told]
        yield Group(*(encodable_line(line, options.encoding) for line in lines))

    def lines(self, width: int, *, is_ascii: bool = False) -> list[Text]:
        """The lines, none of them wider than the terminal."""
        status, now = self._status, time.time()
        top = [*_head(status, width, self._trained), *_best(status, width, is_ascii=is_ascii)]
        below = [*limit_lines(status), *problem_lines(status)]
        bottom = [line for each in below for line in _wrapped(each, width)]
        bottom += _wrapped(Text(printable(self._message), "dim"), width) if self._message else []
        bottom += [Text(self._hint, "dim")] if self._hint else []
        room = 10_000 if self._height is None else self._height - len(top) - len(bottom) - 1
        most = min(_LATEST, max(0, room // 3))
        ended = [*_waiting(status, most, now), *_ended(status, most)][:most]
        slots = slot_lines(status.running, width, room - len(ended), now)
        found = [*top, *slots, *ended, *bottom]
        if self._height is not None and len(found) >= self._height:
            found = [*found[: max(1, self._height - 2)], *found[-1:]]
        return [_fitted(line, width) for line in found]


class LiveView:
    """Draws the study in place.

    Args:
        console: The terminal.
        hint: What Ctrl-C does.
    """

    def __init__(self, console: Console, hint: str = "") -> None:
        self._console, self._hint = console, hint
        self._message = "waiting for the first worker"
        self._status: StudyStatus | None = None
        self._size = console.size
        self._stack = ExitStack()
        self._trained: TrainedShare | None = None
        self._live = Live(
            console=console,
            refresh_per_second=2,  # as often as a study is looked at
            get_renderable=self._render,
            vertical_overflow="crop",
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._hint = ""
        self._stack.close()
        self._live.stop()

    def update(self, status: StudyStatus) -> None:
        """Draw a newer status."""
        self._status = status
        if status.slots and self._message.startswith("waiting"):
            self._message = ""

    def say(self, text: str) -> None:
        """Show a message below the table."""
        self._message = text

    def measure(self, history: EventHistory) -> None:
        """Show which share of the slots' time trained, too, as these events tell it."""
        self._trained = self._stack.enter_context(TrainedShare(history))

    def _render(self) -> Screen | Text:
        if self._console.size != self._size:
            # what was drawn for another width lies there in other lines now
            self._size = self._console.size
            self._console.control(Control.clear(), Control.home())
        if self._status is None:
            line = _fitted(Text(printable(self._message), "dim"), self._size.width)
            return encodable_line(line, self._console.encoding)
        trained = None if self._trained is None else self._trained.value
        return Screen(self._status, self._message, self._hint, self._size.height, trained)


def draw(status: StudyStatus) -> Screen:
    """A status as it is now, in as many lines as it takes."""
    return Screen(status)


def sparkline(points: Sequence[float], width: int, *, is_ascii: bool = False) -> str:
    """Values as bars, of equally many in each; nothing for fewer than two."""
    finite = [point for point in points if abs(point) < float("inf")]
    if len(finite) < 2 or width < 2:
        return ""
    count = min(width, len(finite))
    shown = [finite[(index + 1) * len(finite) // count - 1] for index in range(count)]
    # of halves, the difference is finite, too
    bars, low, high = _ASCII_BARS if is_ascii else _BARS, min(shown) / 2, max(shown) / 2
    span = high - low
    return "".join(
        bars[0] if not span else bars[round((each / 2 - low) / span * (len(bars) - 1))]
        for each in shown
    )


def _head(status: StudyStatus, width: int, trained: float | None) -> list[Text]:
    what = [status.study, state_text(status), slots_text(status)]
    lines = _flowed([*what, brief_span(status.wall_seconds)], width, "bold")
    lines.append(_progress(status, width))
    counted = count_texts(status)
    if status.requeued:
        causes = ", ".join(f"{name} {count}" for name, count in status.requeued.items())
        counted.append(printable(f"{sum(status.requeued.values())} tried again ({causes})"))
    if trained is not None:
        counted.append(f"{trained:.0%} of slot time trained")
    return lines + _flowed(counted, width)


def _progress(status: StudyStatus, width: int) -> Text:
    told = [f"{status.num_ended}/{status.wanted} trials"]
    if (rate := trials_per_hour(status)) is not None:
        told.append(f"{rate:.3g}/h" if rate < 1000 else f"{rate:.0f}/h")
    if (left := seconds_left(status)) is not None:
        told.append(f"{brief_span(left)} left")
    text = "  ".join(told)
    room = min(40, width - len(text) - 2)
    if room < 6:
        return Text(text)
    done = round(room * min(1.0, status.num_ended / max(1, status.wanted)))
    return Text.assemble(("━" * done, "green"), ("─" * (room - done), "dim"), f"  {text}")


def _best(status: StudyStatus, width: int, *, is_ascii: bool) -> list[Text]:
    best = status.best
    if best is None:
        return []
    value = format_values(best.value, best.values, status)
    text = f"best  {value}  trial {best.number}{of_front(status)}"
    bars = sparkline(status.history, min(40, width - len(text) - 2), is_ascii=is_ascii)
    line = Text.assemble((text, "green"), (f"  {bars}" if bars else "", "cyan"))
    return [line, Text(f"      {printable(format_params(best.params))}", "dim")]


def _waiting(status: StudyStatus, count: int, now: float) -> list[Text]:
    """Trials that wait for another attempt, each with why the one before ended."""
    waiting = [each for each in status.retried if each.retry_ms is not None][:count]
    return [
        Text.assemble(
            f"{each.number:>5} ", ("again", "yellow"), f"  attempt {each.attempt} in ",
            brief_span((each.retry_ms or 0) / 1000 - now), f"  {reason(each.cause, each.detail)}",
        )
        for each in waiting
    ]  # fmt: skip


def _ended(status: StudyStatus, count: int) -> list[Text]:
    """The latest ended trials, those that failed with their cause."""
    return [_ended_text(each, status) for each in reversed(status.recent[-count:] if count else [])]


def _ended_text(trial: EndedTrial, status: StudyStatus) -> Text:
    value = format_values(trial.value, trial.values, status, named=False)
    why = trial.error.splitlines()[0] if trial.error else format_params(trial.params)
    tries = f"  {trial.attempts} attempts" if trial.attempts > 1 else ""
    style = _STYLES.get(trial.state, "")
    return Text.assemble(
        f"{trial.number:>5} ", (trial.state, style), f" {value}  {brief_span(trial.seconds)}",
        tries, f"  {printable(why)}",
    )  # fmt: skip


def _flowed(parts: Sequence[str], width: int, style: str = "") -> list[Text]:
    """Parts beside one another, in as few lines as they fit into."""
    lines = [""]
    for part in parts:
        if lines[-1] and len(lines[-1]) + 2 + len(part) > width:
            lines.append("")
        lines[-1] += f"  {part}" if lines[-1] else part
    return [Text(line, style if index == 0 else "") for index, line in enumerate(lines)]


def _wrapped(text: Text, width: int) -> list[Text]:
    """A message in a few lines; what is beyond them is cut."""
    least = len(_CUT) + 1  # whatever is narrower is cut by its terminal
    lines = textwrap.wrap(text.plain, max(width, least), max_lines=_MESSAGE_LINES, placeholder=_CUT)
    return [Text(line, text.style) for line in lines]


def _fitted(line: Text, width: int) -> Text:
    line.no_wrap, line.overflow = True, "ellipsis"
    line.truncate(width, overflow="ellipsis")
    return line
