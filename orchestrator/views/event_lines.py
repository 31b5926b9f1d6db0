"""Events as lines for people: when, of what, and what happened.

Invariant: each event is one line, whatever is in it, and one of a newer release shows its fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from rich.text import Text

from orchestrator.views.explain import clock, place, reason, span
from orchestrator.views.ps import printable
from workers.protocol.events import Event, EventKind
from workers.protocol.states import ProcessKind

_STYLES: Final = {
    "ended COMPLETE": "green", "ended PRUNED": "yellow", "ended FAILED": "red",
    "ended DEAD": "bold red", "ended CANCELLED": "magenta", "requeued": "yellow", "died": "red",
    "stalled": "bold red", "reported": "dim", "checkpoint": "dim", "first_step": "dim",
}  # fmt: skip

#: The widths of what an event is of, and of its kind.
_SUBJECT: Final = 12
_KIND: Final = 10


def line_of(event: Event) -> Text:
    """One event on one line."""
    told = f"{event.kind} {event.state}" if event.state else str(event.kind)
    style = _STYLES.get(told, _STYLES.get(str(event.kind), ""))
    text = Text(f"{clock(event.seconds)}  ", style="dim")
    text.append(f"{_subject(event):<{_SUBJECT}} {printable(str(event.kind)):<{_KIND}} ")
    text.append(" ".join(f"  {'  '.join(_facts(event))}".split("\n")).strip(), style=style)
    return text


def _subject(event: Event) -> str:
    if event.trial is not None and event.kind not in {EventKind.DIED, EventKind.LEFT}:
        return f"trial {event.trial}"
    if event.pid is not None and event.kind is not EventKind.DRIVEN:
        return f"process {event.pid}"
    return "study"


def _facts(event: Event) -> Iterator[str]:
    if not isinstance(event.kind, EventKind):
        known = {"id", "time", "kind", "study", "generation", "trial"}
        yield from (
            printable(f"{name}={value}")
            for name, value in event.document().items()
            if name not in known
        )
        return
    yield from filter(None, _TOLD.get(event.kind, _of_any)(event))


def _claimed(event: Event) -> Iterator[str]:
    yield _attempt(event)
    yield place(event.host, event.pid, event.device)
    yield "" if event.step is None else f"from the checkpoint of step {event.step}"


def _ended(event: Event) -> Iterator[str]:
    yield _attempt(event)
    value = "" if event.value is None else f" {event.value:g}"
    yield f"{event.state or ''}{value}"
    yield "" if event.held_ms is None else f"after {span(event.held_ms / 1000)}"
    yield reason(event.cause, event.detail, event.count)
    yield place(event.host, event.pid, None)
    yield f"waits {span(event.wait_ms / 1000)}" if event.wait_ms else ""


def _first_step(event: Event) -> Iterator[str]:
    yield _attempt(event)
    yield "" if event.after_ms is None else f"after {span(event.after_ms / 1000)}"


def _process(event: Event) -> Iterator[str]:
    yield printable(event.role or "")
    yield place(event.host, None, event.device)
    # a worker's own parent is nobody of the fleet
    yield f"of worker {event.parent}" if event.role == ProcessKind.TRIAL and event.parent else ""
    yield f"at trial {event.trial} of {event.study}" if event.trial is not None else ""


def _driven(event: Event) -> Iterator[str]:
    yield f"by the orchestrator {place(event.host, event.pid, None)}"


def _of_any(event: Event) -> Iterator[str]:
    yield _attempt(event)
    yield "" if event.step is None else f"step {event.step}"
    yield "" if event.value is None else f"{event.value:g}"
    yield printable(event.state or event.wish or "")
    yield "" if event.count is None else str(event.count)
    yield printable(event.detail or "")


def _attempt(event: Event) -> str:
    return f"attempt {event.attempt}" if event.attempt else ""


_TOLD: Final[dict[EventKind, Callable[[Event], Iterator[str]]]] = {
    EventKind.CLAIMED: _claimed,
    EventKind.REQUEUED: _ended,
    EventKind.PAUSED: _ended,
    EventKind.ENDED: _ended,
    EventKind.FIRST_STEP: _first_step,
    EventKind.DRIVEN: _driven,
    EventKind.BORN: _process,
    EventKind.DRAINED: _process,
    EventKind.LEFT: _process,
    EventKind.DIED: _process,
}
