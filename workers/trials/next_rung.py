"""The rung that an attempt trains towards, and whether it has been reached.

Invariant: an attempt that has reached its rung trains no further than to its next call, and leaves
what the objective saves on the way.
"""

from __future__ import annotations

from workers.coordination.trial_record import TrialRecord
from workers.protocol.errors import RungReached
from workers.protocol.halving import RungSchedule
from workers.protocol.messages import Pause, Result
from workers.protocol.spec import StudySpec


class NextRung:
    """Where a trial of a study that promotes is paused next; of any other study, nowhere.

    Args:
        spec: The study.
        record: The trial, as it was granted: an attempt before may have reached the rung, and died.
    """

    def __init__(self, spec: StudySpec, record: TrialRecord) -> None:
        schedule = RungSchedule.of(spec.pruner)
        self._rung = record.rung
        self._resource = None if schedule is None else schedule.resource(record.rung)
        self._reached: tuple[int, float] | None = None
        if record.reported_step is not None and record.reported_value is not None:
            self.note(record.reported_step, record.reported_value)

    @property
    def is_reached(self) -> bool:
        """Whether the trial is to be paused."""
        return self._reached is not None

    def note(self, step: int, value: float) -> None:
        """Take in a report."""
        if self._resource is not None and step >= self._resource and self._reached is None:
            self._reached = step, value

    def check(self) -> None:
        """Return if training may go on.

        Raises:
            RungReached: The trial is to be paused.
        """
        if self._reached is not None:
            raise RungReached(f"rung {self._rung} was reached at step {self._reached[0]}")

    def pause(self, result: Result) -> Pause:
        """What is told of the pause, once the rung was reached."""
        if self._reached is None:
            raise RuntimeError(f"rung {self._rung} was not reached")
        step, value = self._reached
        return Pause(rung=self._rung, step=step, value=value, result=result)
