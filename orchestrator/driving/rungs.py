"""Asynchronous successive halving: who of the trials at a rung is promoted. Pure.

A rung holds the trials that have reported at its step or beyond, by the first such report. Of each
`reduction_factor` of them one is promoted, the best first, the highest rung before the others; who
is better later on is promoted later on, and nobody waits for a rung to be full.

Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning" (2020), algorithm 2.

Invariant: what is promotable follows from the trials alone, in whatever order they were noted.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from workers.protocol.halving import RungSchedule
from workers.protocol.spec import Direction

#: How a trial is ranked in a rung: the least is the best; NaN is the worst, equals by number.
_Rank: TypeAlias = tuple[bool, float, int]


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of one trial."""

    number: int
    reports: Mapping[int, float]
    """By step."""
    rung: int = 0
    """The one that it is on its way to, or paused at."""
    is_paused: bool = False
    counts: bool = True
    """Whether it is held against others; not one that failed."""


class Rungs:
    """The rungs of one study.

    Args:
        schedule: Where they lie.
        direction: Of the study's value.
    """

    def __init__(self, schedule: RungSchedule, direction: Direction) -> None:
        self._schedule = schedule
        self._sign = -1.0 if direction == "maximize" else 1.0
        #: of each rung, who has reached it, the best first
        self._ranked: list[list[_Rank]] = [[] for _ in schedule.resources]
        self._ranks: dict[tuple[int, int], _Rank] = {}
        self._paused_at: dict[int, int] = {}

    def note(self, trial: Standing) -> None:
        """Take a trial in, as it is now."""
        for rung, resource in enumerate(self._schedule.resources):
            step = min((step for step in trial.reports if step >= resource), default=None)
            rank = None
            if step is not None and trial.counts:
                rank = self._rank(trial.number, trial.reports[step])
            self._place(rung, trial.number, rank)
        self._paused_at.pop(trial.number, None)
        if trial.is_paused:
            self._paused_at[trial.number] = trial.rung

    def has_reached(self, number: int, rung: int) -> bool:
        """Whether a trial has a value at a rung."""
        return (rung, number) in self._ranks

    def num_reached(self, rung: int) -> int:
        """How many trials have a value at a rung."""
        return len(self._ranked[rung])

    def promotable(self) -> list[int]:
        """The trials that are to go on, in the order in which they are."""
        return [number for rung in self._downwards() for number in self._of_rung(rung)]

    def leader(self, *, of_all: bool) -> int | None:
        """The paused trial that would be the best to go on; None where there is none.

        Args:
            of_all: Ask for one that is the best of all that ever were at its rung.
        """
        for rung in self._downwards():
            for *_, number in self._ranked[rung][: 1 if of_all else None]:
                if self._paused_at.get(number) == rung:
                    return number
        return None

    def _downwards(self) -> range:
        return range(len(self._ranked) - 1, -1, -1)

    def _of_rung(self, rung: int) -> Iterator[int]:
        ranked = self._ranked[rung]
        for *_, number in ranked[: self._schedule.num_promoted(len(ranked))]:
            if self._paused_at.get(number) == rung:
                yield number

    def _rank(self, number: int, value: float) -> _Rank:
        if math.isnan(value):
            return (True, 0.0, number)
        return (False, self._sign * value, number)

    def _place(self, rung: int, number: int, rank: _Rank | None) -> None:
        before = self._ranks.get((rung, number))
        if before == rank:
            return
        ranked = self._ranked[rung]
        if before is not None:
            del ranked[bisect.bisect_left(ranked, before)]
            del self._ranks[rung, number]
        if rank is not None:
            bisect.insort(ranked, rank)
            self._ranks[rung, number] = rank
