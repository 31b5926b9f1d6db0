"""Where the time of a study's trials went, told by their events as they come.

Time that trained is that of attempts whose work counts: up to the end of one that ended its trial
well or at a rung, and up to the last checkpoint of one that another goes on from. It is taken back
where a trial ends otherwise after all, or begins anew.

Invariant: pure, total and bounded: events that are missing give nothing, and of a trial that has
ended nothing is kept.
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
    """Of what was told before as trained: training that counts for nothing after all."""


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
            return _claim(trial, at_ms)
        told = Told(start_latency=_start(trial, event.get("after_ms")))
        if kind in {EventKind.ASKED, EventKind.PROMOTED}:
            trial.claimable_at = at_ms
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


def _claim(trial: _Open, at_ms: float) -> Told:
    waited = None if trial.claimable_at is None else max(0.0, at_ms - trial.claimable_at) / 1000
    trial.claimed_at, trial.claimable_at = at_ms, None
    trial.checkpoint_at = trial.after_ms = None
    return Told(claim_latency=waited)


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
