"""Which trials of a study are paused at a rung, as its storage has it, and which of them go on.

Where a trial stands lies with it, on disk before anybody acts on it: at which rung it is paused, or
to which one it was promoted. So a promotion survives an orchestrator that is killed, and a Redis
that loses its data.

Invariant: of a study that does not promote, nothing is paused and nothing is promotable.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from orchestrator.driving.rungs import Rungs, Standing
from orchestrator.storage.attributes import RUNG_ATTR
from workers.protocol.halving import RungSchedule
from workers.protocol.spec import StudySpec


@dataclass(frozen=True, slots=True)
class Place:
    """Where a trial stands, as it is kept with it."""

    rung: int = 0
    """The one that it is on its way to, or paused at."""
    is_paused: bool = False
    constraints: Mapping[str, float] = field(default_factory=dict)
    """What it had set when it was paused: the last word, if it is not promoted any more."""

    @classmethod
    def of(cls, trial: FrozenTrial) -> Place:
        """The place of a trial."""
        return cls(**trial.user_attrs.get(RUNG_ATTR, {}))

    def promoted(self) -> Place:
        """On the way to the next rung."""
        return Place(self.rung + 1)

    def paused(self) -> Place:
        """At rest, at the rung that it was on its way to."""
        return replace(self, is_paused=True)

    def stored(self) -> dict[str, Any]:
        """As it is kept."""
        return asdict(self)


class Halving:
    """The rungs of one study, kept while its trials report, pause and end.

    Args:
        spec: The study.
        trials: Those that there are.
    """

    def __init__(self, spec: StudySpec, trials: Iterable[FrozenTrial]) -> None:
        schedule = RungSchedule.of(spec.pruner)
        self._rungs = None if schedule is None else Rungs(schedule, spec.all_directions[0])
        for trial in trials if self._rungs is not None else ():
            self.note(trial)

    def note(self, trial: FrozenTrial) -> None:
        """Take a trial in, as the storage has it now."""
        if self._rungs is None:
            return
        place = Place.of(trial)
        standing = Standing(
            trial.number,
            trial.intermediate_values,
            rung=place.rung,
            is_paused=place.is_paused and not trial.state.is_finished(),
            counts=trial.state is not optuna.trial.TrialState.FAIL,
        )
        self._rungs.note(standing)

    def has_reached(self, number: int, rung: int) -> bool:
        """Whether a trial has a value at a rung."""
        return self._rungs is not None and self._rungs.has_reached(number, rung)

    def promotable(self) -> list[int]:
        """The trials that are to go on, in the order in which they are."""
        return [] if self._rungs is None else self._rungs.promotable()

    def last_call(self, *, has_complete: bool) -> list[int]:
        """Who goes on at the study's end, when nothing else does: there may be too few for a rung.

        Args:
            has_complete: Whether a trial is complete; then only who was the best at its rung.
        """
        leader = None if self._rungs is None else self._rungs.leader(of_all=has_complete)
        return [] if leader is None else [leader]
