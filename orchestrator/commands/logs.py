"""`trialfleet logs`: what a trial printed, by attempt, and what it prints while it runs.

Invariant: nothing is changed, and nothing is shown twice.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Final

import redis
import typer

from orchestrator.commands.options import NameArgument
from orchestrator.handle import StudyHandle
from orchestrator.storage.printed import PrintedAttempt
from orchestrator.views.complaints import EXIT_FAILED, EXIT_INTERRUPTED
from orchestrator.views.following import LOOK_SECONDS
from orchestrator.views.json_output import print_json, print_json_line
from orchestrator.views.printed_text import lines_of
from workers.protocol.errors import (
    InvalidInputError,
    RedisUnavailableError,
    StudyNotKnownError,
)
from workers.protocol.plain import describe_error
from workers.settings import Settings

#: How long after a trial's end what it printed last may be on its way.
_LAST_SECONDS: Final = 3.0

#: Characters of why there is no news.
_MAX_REASON: Final = 300

logs_app = typer.Typer()


@logs_app.command()
def logs(
    name: NameArgument,
    trial: Annotated[int, typer.Argument(metavar="TRIAL", help="The trial's number.")],
    attempt: Annotated[
        int | None, typer.Option("--attempt", help="Of this attempt alone.", min=1)
    ] = None,
    is_followed: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what it prints, until it ends.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON document; with --follow, one a line."),
    ] = False,
) -> None:
    """Show what a trial printed: its print, logging, warnings, and what its children wrote.

    Example: trialfleet logs language-id 7 --follow
    """
    handle = StudyHandle(name)
    _check_trial(handle, trial)
    found = [] if is_followed else _of(handle.printed(trial), attempt)
    if not found and not is_followed:
        _say_why(handle, trial, attempt)
    try:
        if is_followed:
            _follow(handle, trial, attempt, as_json=as_json)
        elif as_json:
            print_json({"study": name, "trial": trial, "attempts": [_told(each) for each in found]})
        else:
            for each in found:
                _show(each, each.text, with_heading=len(found) > 1)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except BrokenPipeError:  # whoever read it has seen enough
        raise typer.Exit(EXIT_FAILED) from None


def _check_trial(handle: StudyHandle, trial: int) -> None:
    """Refuse a trial that the study does not have.

    Raises:
        InvalidInputError: There is no such trial, or no such study.
    """
    if trial < 0:
        raise InvalidInputError(f"trial {trial}: trials are numbered from 0")
    num_trials = sum(handle.kept_status().trials.values())
    if trial >= num_trials:
        raise InvalidInputError(
            f"trial {trial}: study {handle.name!r} has {num_trials} trials, from 0"
        )


def _of(found: list[PrintedAttempt], attempt: int | None) -> list[PrintedAttempt]:
    return [each for each in found if attempt in {None, each.attempt}]


def _told(each: PrintedAttempt) -> dict[str, object]:
    return each.model_dump(mode="json")


def _say_why(handle: StudyHandle, trial: int, attempt: int | None) -> None:
    """Say why there is nothing to show.

    Raises:
        InvalidInputError: Other attempts at the trial printed something.
    """
    others = [str(each.attempt) for each in handle.printed(trial)]
    if attempt is not None and others:
        raise InvalidInputError(
            f"--attempt {attempt}: of trial {trial} of {handle.name!r}, these attempts printed"
            f" something: {', '.join(others)}"
        )
    print(f"trial {trial} of {handle.name!r} has printed nothing", file=sys.stderr)


def _follow(handle: StudyHandle, trial: int, attempt: int | None, *, as_json: bool) -> None:
    shown: dict[int, int] = {}
    latest: int | None = None
    for found in _looks(handle, trial):
        for each in _of(found, attempt):
            text = each.after(shown.get(each.token, 0))
            if each.end <= shown.get(each.token, 0):
                continue
            missing = each.end - shown.get(each.token, 0) - len(text.encode())
            if missing > 0 and each.source == "redis":
                text = f"[trialfleet: {missing} bytes are not here]\n{text}"
            shown[each.token] = each.end
            if as_json:
                print_json_line({"attempt": each.attempt, "token": each.token, "text": text})
            else:
                _show(each, text, with_heading=latest not in {None, each.token})
            latest = each.token
        sys.stdout.flush()


def _looks(handle: StudyHandle, trial: int) -> Iterator[list[PrintedAttempt]]:
    """What is known now, again and again, until the trial has ended and all was kept of it."""
    ended_at: float | None = None
    end = _End(handle, trial)
    while True:
        has_ended, found = False, []
        try:
            has_ended = end.has_come()
            with suppress(StudyNotKnownError):  # its fleet is away: for how long, `has_come` tells
                found = handle.printed(trial, asks_store=False)
        except (RedisUnavailableError, redis.RedisError) as error:
            end.has_no_news(describe_error(error, _MAX_REASON))
        yield found
        if has_ended:
            ended_at = ended_at or time.monotonic()
            is_kept = bool(found) and all(each.is_over for each in found)
            if is_kept or time.monotonic() - ended_at > _LAST_SECONDS:
                return
        time.sleep(LOOK_SECONDS)


class _End:
    """Whether a trial that is followed has ended; a fleet that is away meanwhile is waited for."""

    def __init__(self, handle: StudyHandle, trial: int) -> None:
        self._handle, self._trial = handle, trial
        self._patience_seconds = Settings.from_environment().times.lease
        #: when it was seen last that it had not ended, or nobody could be asked
        self._seen_at: float | None = None
        self._has_said = False

    def has_come(self) -> bool:
        """Whether it has ended; a trial of no fleet has, unless it was seen otherwise before.

        Raises:
            InvalidInputError: No fleet knows it any more.
            RedisUnavailableError: Redis does not answer.
        """
        has_ended = self._handle.has_ended(self._trial)
        if has_ended is not None or self._seen_at is None:
            self._seen_at = None if has_ended is not False else time.monotonic()
            self._has_said = False
            return has_ended is not False
        if time.monotonic() - self._seen_at > self._patience_seconds:
            raise InvalidInputError(
                f"trial {self._trial} of {self._handle.name!r}: it had not ended, and no fleet"
                f" knows it any more; see `trialfleet status {self._handle.name}`"
            )
        self._say("no fleet knows the trial")
        return False

    def has_no_news(self, reason: str) -> None:
        """Nobody can be asked."""
        self._seen_at = time.monotonic()
        self._say(reason)

    def _say(self, reason: str) -> None:
        if not self._has_said:
            print(f"no news: {reason}; waiting for it", file=sys.stderr, flush=True)
        self._has_said = True


def _show(each: PrintedAttempt, text: str, *, with_heading: bool) -> None:
    if with_heading:
        print(f"--- attempt {each.attempt} ---")
    if sys.stdout.isatty():
        print("\n".join(lines_of(text)))
    else:
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
