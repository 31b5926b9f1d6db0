"""One trial's life, put together from its events: its attempts, and what became of each.

Invariant: pure, and total: events that are missing, since the oldest were dropped, leave fields
empty, and nothing is made up for them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, Final

from optuna.trial import FrozenTrial
from pydantic import BaseModel

from orchestrator.storage.attributes import ATTR, ORDER_ATTR, RETRIES_ATTR
from orchestrator.storage.printed import PrintedAttempt
from orchestrator.storage.tally import state_of
from orchestrator.views.printed_text import last_lines
from orchestrator.views.trial_cost import TrialCost, cost_of
from workers.protocol.events import Cause, Event, EventKind
from workers.protocol.states import TrialState

#: What ends an attempt.
_ENDS: Final = {EventKind.REQUEUED, EventKind.PAUSED, EventKind.ENDED}

#: Of an attempt that ended so, what it printed last may tell why.
_TELLING: Final = {
    Cause.FAILED, Cause.OUT_OF_MEMORY, Cause.BROKE, Cause.DIED, Cause.LOADER_DIED, Cause.LEASE_LOST,
    Cause.TIMED_OUT,
}  # fmt: skip
_SHOWN_LINES: Final = 5

_OVER: Final = frozenset(state for state in TrialState if state.is_terminal)


#: Whose step is that of a checkpoint before it.
_OF_CHECKPOINT: Final = {EventKind.CLAIMED, EventKind.BEGAN_ANEW}


class Attempt(BaseModel):
    """One attempt at a trial; times in seconds since 1970."""

    number: int
    claimed_at: float | None = None
    host: str | None = None
    pid: int | None = None
    process: str | None = None
    device: str | None = None
    from_step: int | None = None
    """Of the checkpoint that it went on from."""
    anew: str | None = None
    """Why it went on from no checkpoint though there was one."""
    first_step_seconds: float | None = None
    """How long after the claim."""
    last_step: int | None = None
    """As far as anything told of it."""
    checkpoint_step: int | None = None
    """The last that it saved, as far as events tell."""
    reported_step: int | None = None
    reported_value: float | None = None
    ended_at: float | None = None
    held_seconds: float | None = None
    """How long it held its slot, to the end of its lease at most."""
    ended_as: str | None = None
    """The trial's state after it: QUEUED, PAUSED, or how the trial ended."""
    cause: str | None = None
    count: int | None = None
    """Of failures, or of losses, with this one."""
    detail: str | None = None
    wait_seconds: float | None = None
    """How long the trial had to wait for another one."""
    promoted_at: float | None = None
    """Of one that ended at a rung: when the trial was sent on from there."""
    promoted: str | None = None
    """Likewise: to which rung."""
    steps_lost: int | None = None
    """How many steps the next attempt makes again."""
    last_lines: list[str] = []
    """What it printed last, where it did not come to a result."""


class TrialLife(BaseModel):
    """What is known of one trial."""

    study: str
    trial: int
    state: str = TrialState.QUEUED.value
    asked_at: float | None = None
    num_asked: int = 0
    """More than once, if Redis lost its record."""
    attempts: list[Attempt] = []
    ended_at: float | None = None
    value: float | None = None
    cause: str | None = None
    detail: str | None = None
    unknown: list[dict[str, Any]] = []
    """Events of a newer release."""
    params: dict[str, Any] = {}
    """As the study's results have them, where those are at hand."""
    error: str | None = None
    """Likewise."""
    is_ordered: bool = False
    """Likewise: whether people asked for these parameters."""
    retries: int | None = None
    """Likewise: the trial that it tries again."""
    has_printed: bool = False
    """Whether anything is kept of what its attempts printed."""
    retried_as: list[int] = []
    """Likewise: the trials that try it again."""
    cost: TrialCost = TrialCost()

    @property
    def is_without_events(self) -> bool:
        """Whether no event of it is left."""
        return not (self.num_asked or self.attempts or self.ended_at or self.unknown)

    @property
    def held_seconds(self) -> float:
        """How long its attempts that have ended held slots, together."""
        return sum(attempt.held_seconds or 0.0 for attempt in self.attempts)

    @property
    def steps_lost(self) -> int:
        """How many steps were, or are to be, made again."""
        return sum(attempt.steps_lost or 0 for attempt in self.attempts)


def life_of(study: str, trial: int, events: Iterable[Event]) -> TrialLife:
    """Put a trial's events together; those of others are passed over.

    A record that Redis lost counts its attempts anew, one that was taken back some of them: in a
    life, each has the number that comes after all before it.
    """
    life, attempts, num_before = TrialLife(study=study, trial=trial), dict[int, Attempt](), 0
    for event in events:
        if event.trial != trial:
            continue
        if not isinstance(event.kind, EventKind):
            life.unknown.append(event.document())
            continue
        num_before = _num_before(event, num_before, max(attempts, default=0))
        number = num_before + (event.attempt or 0)
        # a trial that was written again as paused is promoted from the attempt before that
        if event.attempt or (number and event.kind is EventKind.PROMOTED):
            _note(attempts.setdefault(number, Attempt(number=number)), event)
        _note_state(life, event)
    life.attempts = [attempts[number] for number in sorted(attempts)]
    _count_lost(life.attempts)
    return life


def with_cost(life: TrialLife, events: Iterable[Event], now: float) -> TrialLife:
    """Add what a trial cost; after its results, for these may have it as ended.

    Args:
        life: The trial's.
        events: In order; those of others are passed over.
        now: In seconds since 1970, by the clock of Redis: until when it goes on, if it does.
    """
    cost = cost_of(life.trial, events, None if life.state in _OVER else now)
    return life.model_copy(update={"cost": cost})


def with_output(life: TrialLife, found: Sequence[PrintedAttempt]) -> TrialLife:
    """Add what a trial's attempts printed last, of those that failed or were lost."""
    attempts = [
        attempt.model_copy(update={"last_lines": last_lines(found, attempt.number, _SHOWN_LINES)})
        if attempt.cause in _TELLING
        else attempt
        for attempt in life.attempts
    ]
    return life.model_copy(update={"attempts": attempts, "has_printed": bool(found)})


def with_results(life: TrialLife, trials: Sequence[FrozenTrial]) -> TrialLife:
    """Add what the study's results say of a trial; where they have it as ended, that counts.

    Args:
        life: One of these trials'.
        trials: All of the study.
    """
    stored = trials[life.trial]
    attrs = stored.user_attrs
    told: dict[str, Any] = {
        "params": stored.params,
        "error": attrs.get(f"{ATTR}error"),
        "is_ordered": ORDER_ATTR in attrs,
        "retries": attrs.get(RETRIES_ATTR),
        "retried_as": [
            number
            for number, trial in enumerate(trials)
            if trial.user_attrs.get(RETRIES_ATTR) == life.trial
        ],
    }
    if stored.state.is_finished():
        told["state"] = state_of(stored).value
        told["value"] = stored.values[0] if stored.values else life.value
    return life.model_copy(update=told)


def _num_before(event: Event, num_before: int, latest: int) -> int:
    """How many attempts there were that the numbers in a record do not count, as of an event of it.

    Args:
        event: The next one.
        num_before: How many there were before it.
        latest: The number of the latest attempt.
    """
    if event.kind is EventKind.ASKED:
        return latest
    number = event.attempt or 0
    is_repeated = event.kind is EventKind.CLAIMED and number and num_before + number <= latest
    return latest + 1 - number if is_repeated else num_before


def _note_state(life: TrialLife, event: Event) -> None:
    """Take in how the trial stands after an event."""
    if event.kind is EventKind.ASKED:
        life.num_asked += 1
        life.asked_at = life.asked_at or event.seconds
        life.state = event.state or TrialState.QUEUED.value
    elif event.kind is EventKind.CLAIMED:
        life.state = TrialState.RUNNING.value
    elif event.kind in {EventKind.REQUEUED, EventKind.PROMOTED}:
        life.state = TrialState.QUEUED.value
    elif event.kind is EventKind.PAUSED:
        life.state = TrialState.PAUSED.value
    if event.kind is EventKind.ENDED:
        life.state = event.state or life.state
        life.ended_at, life.value = event.seconds, event.value
        life.cause, life.detail = event.cause, event.detail
    elif event.kind in {EventKind.ASKED, EventKind.CLAIMED}:  # an end that was lost is none
        life.ended_at = life.value = life.cause = life.detail = None


def _note(attempt: Attempt, event: Event) -> None:
    """Take in what an event tells of an attempt."""
    if event.kind is EventKind.CLAIMED:
        attempt.claimed_at, attempt.process = event.seconds, event.process
        attempt.host, attempt.pid, attempt.device = event.host, event.pid, event.device
        attempt.from_step = event.step
    elif event.kind is EventKind.BEGAN_ANEW:
        attempt.anew, attempt.from_step = event.detail or "", 0
    elif event.kind is EventKind.REPORTED:
        attempt.reported_step, attempt.reported_value = event.step, event.value
    elif event.kind is EventKind.CHECKPOINT:
        attempt.checkpoint_step = event.step
    elif event.kind is EventKind.PROMOTED:
        attempt.promoted_at, attempt.promoted = event.seconds, event.detail
    elif event.kind in _ENDS and attempt.ended_at is None:
        # one that is withdrawn while it waits has no attempt that ends with it
        _note_end(attempt, event)
    if event.after_ms is not None:
        attempt.first_step_seconds = event.after_ms / 1000
    if event.step is not None and event.kind not in _OF_CHECKPOINT:
        attempt.last_step = max(attempt.last_step or 0, event.step)


def _note_end(attempt: Attempt, event: Event) -> None:
    if attempt.process is None:  # its beginning is not known any more
        attempt.process, attempt.host, attempt.pid = event.process, event.host, event.pid
    attempt.ended_at = event.seconds
    attempt.held_seconds = None if event.held_ms is None else event.held_ms / 1000
    attempt.ended_as = event.state or TrialState.QUEUED.value
    attempt.cause, attempt.count, attempt.detail = event.cause, event.count, event.detail
    attempt.wait_seconds = None if event.wait_ms is None else event.wait_ms / 1000


def _count_lost(attempts: list[Attempt]) -> None:
    """Count the steps that an attempt made after the checkpoint from which the next one went on."""
    for attempt, following in itertools.pairwise(attempts):
        if following.process == attempt.process and not following.device:
            continue  # what it made was handed in anew: nobody made it again
        if attempt.last_step is not None and following.claimed_at is not None:
            attempt.steps_lost = max(0, attempt.last_step - (following.from_step or 0))
