"""What has happened, for people and programs: `events` of a study or the fleet, `explain` a trial.

Invariant: nothing is changed, and it works without an orchestrator: from the file beside the
study's results where this machine has it, and from Redis where that answers.
"""

from __future__ import annotations

import datetime as dt
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Final

import redis
import typer
from optuna.trial import FrozenTrial
from rich.console import Console

from orchestrator.commands.completion import complete_study
from orchestrator.commands.options import NameArgument
from orchestrator.handle import StudyHandle
from orchestrator.storage.event_file import EventFile, events_file
from orchestrator.storage.event_history import EventHistory
from orchestrator.storage.known_studies import known_studies
from orchestrator.views.complaints import EXIT_FAILED, EXIT_INTERRUPTED
from orchestrator.views.console import open_console
from orchestrator.views.event_lines import line_of
from orchestrator.views.explain import PRINTED_MARK
from orchestrator.views.explain import explain as explain_life
from orchestrator.views.following import LOOK_SECONDS, follow
from orchestrator.views.json_output import JsonOption, print_json, print_json_lines
from orchestrator.views.trial_life import (
    TrialLife,
    life_of,
    with_cost,
    with_output,
    with_results,
)
from workers.coordination.connection import connect
from workers.coordination.event_stream import EventStream
from workers.coordination.rights import Role
from workers.protocol.durations import parse_duration
from workers.protocol.errors import (
    FleetError,
    InvalidInputError,
    RedisUnavailableError,
    StudyNotKnownError,
    nearest,
)
from workers.protocol.events import Event, EventKind
from workers.settings import Settings

events_app = typer.Typer()

#: Of a terminal: in a narrower one, lines are broken by it.
_LEAST_WIDTH: Final = 20

#: Events; one by one, three quarters of the time would go to the printing of each.
_PRINTED_AT_ONCE: Final = 500


@dataclass(frozen=True)
class _Wanted:
    """Which events are asked for."""

    trial: int | None
    kinds: frozenset[str]
    since: float

    @classmethod
    def read(cls, trial: int | None, kinds: list[str], since: str | None) -> _Wanted:
        """What the options say.

        Raises:
            InvalidInputError: One of them says nothing that can be.
        """
        if trial is not None and trial < 0:
            raise InvalidInputError(f"--trial {trial}: trials are numbered from 0")
        for kind in kinds:
            if kind not in set(EventKind):
                known = nearest(kind, EventKind) or f"; there are: {', '.join(EventKind)}"
                raise InvalidInputError(f"--kind {kind!r}: no kind of event{known}")
        return cls(trial, frozenset(kinds), 0.0 if since is None else _read_since(since))

    def __contains__(self, event: Event) -> bool:
        return (
            (self.trial is None or event.trial == self.trial)
            and (not self.kinds or event.kind in self.kinds)
            and event.seconds >= self.since
        )


@events_app.command()
def events(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="A study; without one, the fleet's processes.",
            autocompletion=complete_study,
        ),
    ] = None,
    is_followed: Annotated[
        bool, typer.Option("--follow", help="Go on with what happens, until the study is over.")
    ] = False,
    trial: Annotated[int | None, typer.Option("--trial", help="Of this trial alone.")] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", help=f"One of {', '.join(EventKind)}; may be given again."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", help="For so long (10m, 2h), or from a time (2026-11-26T08:00)."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document a line, nothing else.")
    ] = False,
) -> None:
    """Show what has happened: to a study and its trials, or to the fleet's processes.

    Asked, claimed, first step, reports, checkpoints, why an attempt ended, who wanted what. With
    --follow, lines are JSON where they do not go to a terminal.

    Example: trialfleet events language-id --follow --kind requeued --kind ended
    """
    wanted = _Wanted.read(trial, kind or [], since)
    is_json = as_json or (is_followed and not open_console().is_terminal)
    try:
        with _history(name, must_answer=is_followed) as history:
            told = _follow(history, name) if is_followed else _batches(history.read())
            _show(
                ([event for event in batch if event in wanted] for batch in told), is_json=is_json
            )
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:  # whoever read it has seen enough
        raise typer.Exit(EXIT_FAILED) from None


@events_app.command()
def explain(
    name: NameArgument,
    trial: Annotated[int, typer.Argument(metavar="TRIAL", help="The trial's number.")],
    as_json: JsonOption = False,
) -> None:
    """Tell one trial's life: each attempt, where it ran, why it ended, and what it cost.

    Of slots: training that counts, warming up, training for nothing or made again; and its waits.

    Example: trialfleet explain language-id 7
    """
    with _history(name, trial=trial) as history:
        told = list(history.read())
        now = history.now
    handle = StudyHandle(name)
    life = with_cost(_with_results(life_of(name, trial, told), handle), told, now)
    with suppress(FleetError, redis.RedisError):  # all else is known without it
        life = with_output(life, handle.printed(trial, asks_store=False))
    if as_json:
        found = {"held_seconds": life.held_seconds, "steps_lost": life.steps_lost}
        print_json({**life.model_dump(mode="json"), **found})
        return
    console = open_console(highlight=False)
    for line in explain_life(life):
        console.print(_fitted(line, console), markup=False, soft_wrap=True)


def _fitted(line: str, console: Console) -> str:
    """A line for a terminal is broken between words; what was printed, and paths, stay whole."""
    if not console.is_terminal or line.startswith(PRINTED_MARK):
        return line
    indent = " " * (len(line) - len(line.lstrip()) + 4)
    width = max(console.width, _LEAST_WIDTH)
    return textwrap.fill(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _batches(told: Iterator[Event]) -> Iterator[list[Event]]:
    """Those that are at hand, so many at a time at most: they are printed at once.

    Raises:
        redis.RedisError: Redis is away; what was told before is among them: it comes only once.
    """
    batch: list[Event] = []
    try:
        for event in told:
            batch.append(event)
            if len(batch) == _PRINTED_AT_ONCE:
                yield batch
                batch = []
    except redis.RedisError:
        yield batch
        raise
    yield batch


def _show(told: Iterator[list[Event]], *, is_json: bool) -> None:
    console, has_any = open_console(), False
    for batch in filter(None, told):
        has_any = True
        if is_json:
            print_json_lines(event.document() for event in batch)
        else:
            console.print(*map(line_of, batch), sep="\n", soft_wrap=True)
    if not has_any and not is_json:
        console.print("no such event is known here")


def _read_since(text: str) -> float:
    """From when on, in seconds since 1970.

    Raises:
        InvalidInputError: It is neither a duration nor a time.
    """
    with suppress(ValueError):
        return time.time() - parse_duration(text)
    try:
        return dt.datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidInputError(
            f"--since {text!r}: neither a duration such as 10m or 2h nor a time such as"
            " 2026-11-26T08:00"
        ) from error


@contextmanager
def _history(
    name: str | None, trial: int | None = None, *, must_answer: bool = False
) -> Iterator[EventHistory]:
    """What is known of a study's events, or the fleet's.

    Args:
        name: The study.
        trial: Of which alone events are read.
        must_answer: Whether Redis is needed.

    Raises:
        StudyNotKnownError: Nobody knows it.
        RedisUnavailableError: Redis does not answer, and this machine has no file of its events.
    """
    settings = Settings.from_environment()
    if name is not None:
        StudyHandle(name)  # refuses what is no name of a study, and so of no folder
    path = events_file(settings.home, name)
    if name is not None and not path.exists():
        _refuse_unknown(name, settings)
    try:
        client = connect(settings, Role.VIEWER)
    except RedisUnavailableError:
        if must_answer or not path.exists():
            raise
        client = None
    if not path.exists():
        note = "note: no file of these events is on this machine; what follows is what is news"
        print(note, file=sys.stderr)
    stream = None if client is None else EventStream(client, name)
    try:
        yield EventHistory(EventFile(path), stream, name, trial)
    finally:
        if client is not None:
            client.close()


def _refuse_unknown(name: str, settings: Settings) -> None:
    known = known_studies(settings)
    if name not in known:
        told = nearest(name, known) or f"; it knows: {', '.join(known) or 'none yet'}"
        raise StudyNotKnownError(f"study {name!r}: not known to this fleet{told}")


def _follow(history: EventHistory, name: str | None) -> Iterator[list[Event]]:
    """Events as they come, until the study is over; a Redis that is away is waited for."""
    settings = Settings.from_environment()
    looks: Iterable[object] = (
        iter(lambda: time.sleep(LOOK_SECONDS), 0)
        if name is None
        # what is told before a study's end is read after it
        else follow(StudyHandle(name).status, patience_seconds=settings.times.lease)
    )
    for _ in looks:
        with suppress(redis.RedisError):
            yield from _batches(history.read())


def _stored(handle: StudyHandle) -> list[FrozenTrial] | None:
    """The trials in a study's results; None where those are on another machine."""
    with suppress(FleetError):
        return handle.study.get_trials(deepcopy=False)
    return None


def _with_results(life: TrialLife, handle: StudyHandle) -> TrialLife:
    """Add what the study's results say of a trial, where they are on this machine.

    Raises:
        InvalidInputError: There is no such trial.
    """
    trials = _stored(handle)
    if trials is not None and 0 <= life.trial < len(trials):
        return with_results(life, trials)
    if life.is_without_events:
        has = "tells nothing of it" if trials is None else f"has {len(trials)} trials, from 0"
        raise InvalidInputError(f"trial {life.trial}: study {life.study!r} {has}")
    return life
