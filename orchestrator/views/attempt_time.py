"""Where the time of a study's trials went, told by their events as they come.

Time that trained is that of attempts whose work counts: up to the end of one that ended its trial
well or at a rung, and up to the last checkpoint of one that another goes on from. It is taken back
where a trial ends otherwise after all, or begins anew. An attempt of whose end nothing is told,
since Redis lost the trial's record or was taken back, held its slot until the trial was queued or
claimed again.

Invariant: pure, total and bounded: no second of a trial is told twice, whatever order its events
come in; those that are missing give nothing, and of a trial that has ended nothing is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from workers.protocol.events import EventKind
from workers.protocol.states import TrialState

#: How many open trials of a study are followed; of further ones the time is not told.
MAX_OPEN: Final = 20_000

#: What is longer, or later, is none: some 30,000 years.
_MAX_MS: Final = 1e15

#: States of trials whose whole last attempt was of use.
_OF_USE: Final = frozenset({TrialState.COMPLETE, TrialState.PRUNED})

_ENDS: Final = frozenset({EventKind.REQUEUED, EventKind.PAUSED, EventKind.ENDED})


class Spent(NamedTuple):
    """The seconds that one attempt held its slot, by what they were for."""

    trained: float = 0.0
    warming: float = 0.0
    """From the claim to the first training step."""
    lost: float = 0.0
    """Training that counts for nothing, or is made again."""


class Told(NamedTuple):
    """What one event tells of time, in seconds; None for what it does not tell."""

    claim_latency: float | None = None
    """From when the trial could be claimed to its claim."""
    start_latency: float | None = None
    """From the claim to the first training step."""
    spent: Spent | None = None
    undone: float = 0.0
    """Of what was told before as trained: training that counts for nothing after all; below 0, of
    what was told as lost: training that counts after all."""


@dataclass
class _Open:
    """A trial that has not ended; times in ms since 1970, by the clock of Redis."""

    claimable_at: float | None = None
    claimed_at: float | None = None
    checkpoint_at: float | None = None
    after_ms: float | None = None
    """From the claim to the first training step."""
    trained: float = 0.0
    """Seconds, of attempts that have ended."""
    holder: Any = None
    """The process that claimed it last."""
    in_doubt: float = 0.0
    """Seconds that were told as lost with the attempt of that process, of whose end nothing was."""


class AttemptTimes:
    """Follows the trials of one study."""

    def __init__(self) -> None:
        self._open: dict[int, _Open] = {}

    def take(self, kind: str, at_ms: float, event: dict[str, Any]) -> Told:
        """What an event tells, in the light of those before it."""
        number = event.get("trial")
        if not isinstance(number, int):
            return Told()
        trial = self._open.get(number)
        if trial is None:
            if len(self._open) >= MAX_OPEN or kind == EventKind.ENDED:
                trial = _Open()
            else:
                trial = self._open.setdefault(number, _Open())
        if kind == EventKind.CLAIMED:
            return _claim(trial, at_ms, event)
        told = Told(start_latency=_start(trial, event.get("after_ms")))
        if kind in {EventKind.ASKED, EventKind.PROMOTED}:
            told = _queue(trial, told, kind, at_ms, event)
        elif kind == EventKind.BEGAN_ANEW:
            told = told._replace(undone=_undo(trial))
        elif kind == EventKind.CHECKPOINT:
            trial.checkpoint_at = at_ms
        elif kind in _ENDS:
            told = _spend(trial, told, kind, event)
            self._end(number, trial, kind, at_ms + _number(event.get("wait_ms")))
        return told

    def going_on(self, number: int, now_ms: float) -> Spent:
        """What a trial's attempt that has not ended has spent so far; nothing of it is lost yet.

        Until a first step is told, all may be training: an objective need not tell any.
        """
        trial = self._open.get(number)
        if trial is None or trial.claimed_at is None:
            return Spent()
        held = max(0.0, now_ms - trial.claimed_at)
        warming = min(held, trial.after_ms or 0.0)
        return Spent(trained=(held - warming) / 1000, warming=warming / 1000)

    def _end(self, number: int, trial: _Open, kind: str, claimable_at: float) -> None:
        if kind == EventKind.ENDED:
            self._open.pop(number, None)
            return
        trial.claimable_at = claimable_at if kind == EventKind.REQUEUED else None
        trial.claimed_at = trial.checkpoint_at = None


def _claim(trial: _Open, at_ms: float, event: dict[str, Any]) -> Told:
    told = Told()
    if trial.claimed_at is not None:  # Redis was taken back, or the end was dropped
        told = _cut_off(trial, told, at_ms, goes_on=event.get("step") is not None)
    is_holder = trial.holder is not None and event.get("process") == trial.holder
    if is_holder and not event.get("device"):  # it hands in the result that it came to
        trial.trained += trial.in_doubt
        told = told._replace(undone=told.undone - trial.in_doubt)
    trial.holder, trial.in_doubt = event.get("process"), 0.0
    waited = None if trial.claimable_at is None else max(0.0, at_ms - trial.claimable_at) / 1000
    trial.claimed_at, trial.claimable_at = at_ms, None
    trial.checkpoint_at = trial.after_ms = None
    return told._replace(claim_latency=waited)


def _queue(trial: _Open, told: Told, kind: str, at_ms: float, event: dict[str, Any]) -> Told:
    """A trial may be claimed from now on; nobody holds it, even if that was not told."""
    is_kept = kind == EventKind.PROMOTED or event.get("state") == TrialState.PAUSED
    told = _cut_off(trial, told, at_ms, goes_on=is_kept or event.get("step") is not None)
    trial.claimable_at = at_ms
    return told


def _cut_off(trial: _Open, told: Told, at_ms: float, *, goes_on: bool) -> Told:
    """End an attempt of whose end nothing is told.

    Args:
        trial: Its trial.
        told: What the event tells besides.
        at_ms: When the trial is another one's, or nobody's, as far as is known.
        goes_on: Whether from the last checkpoint, so that what was trained before it counts.
    """
    undone, spent = 0.0, None
    if not goes_on:
        undone, trial.checkpoint_at = _undo(trial), None
    if trial.claimed_at is not None:
        spent = _spent(trial, EventKind.REQUEUED, {"held_ms": at_ms - trial.claimed_at})
    if spent is not None:
        trial.trained += spent.trained
        trial.in_doubt = undone + spent.lost
    trial.claimed_at = trial.checkpoint_at = trial.after_ms = None
    return told._replace(spent=spent, undone=undone)


def _start(trial: _Open, after_ms: Any) -> float | None:
    """How long the first step took, when it is told for the first time."""
    if after_ms is None or trial.after_ms is not None or trial.claimed_at is None:
        return None
    trial.after_ms = _number(after_ms)
    return trial.after_ms / 1000


def _undo(trial: _Open) -> float:
    """What its attempts trained before counts for nothing: how much that was."""
    undone, trial.trained = trial.trained, 0.0
    return undone


def _spend(trial: _Open, told: Told, kind: str, event: dict[str, Any]) -> Told:
    """Add what an attempt that ends has spent, and what becomes of that of those before it."""
    spent = _spent(trial, kind, event)
    is_lost = kind == EventKind.ENDED and str(event.get("state")) not in _OF_USE
    undone = _undo(trial) if is_lost else 0.0
    trial.trained += 0.0 if spent is None else spent.trained
    return told._replace(spent=spent, undone=undone)


def _spent(trial: _Open, kind: str, event: dict[str, Any]) -> Spent | None:
    held = _number(event.get("held_ms"))
    if trial.claimed_at is None or not held:  # withdrawn before anybody ran it
        return None
    warming = min(held, trial.after_ms or 0.0)
    if kind == EventKind.PAUSED or str(event.get("state")) in _OF_USE:
        useful_until = held
    elif kind == EventKind.ENDED or trial.checkpoint_at is None:
        useful_until = warming
    else:
        useful_until = min(held, max(warming, trial.checkpoint_at - trial.claimed_at))
    return Spent(
        trained=(useful_until - warming) / 1000,
        warming=warming / 1000,
        lost=(held - useful_until) / 1000,
    )


def _number(value: Any) -> float:
    """A number of an event; what is none counts as nothing."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < _MAX_MS else 0.0
