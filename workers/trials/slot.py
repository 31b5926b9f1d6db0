"""What a pool process has at hand for all the trials that it runs, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

import redis

from workers.containers import Container
from workers.coordination.hints import Hints
from workers.coordination.studies import Studies
from workers.managers import CUDAManager
from workers.processes.registry import ProcessRecord
from workers.settings import Settings
from workers.trials.code_that_ran import CodeThatRan
from workers.trials.drain_signal import DrainSignal
from workers.trials.failure_streak import FailureStreak
from workers.trials.refused_studies import RefusedStudies
from workers.trials.slot_health import SlotHealth

#: What the record of a process says between trials.
AT_NO_TRIAL: Final = {
    "study": None,
    "trial": None,
    "token": None,
    "attempt": None,
    "activity": None,
}


@dataclass(frozen=True)
class Slot:
    """A pool process, as what runs trials in it knows it."""

    settings: Settings
    container: Container
    """Its managers."""
    record: ProcessRecord
    """Its entry in the registry."""
    drain: DrainSignal
    """Whether its worker shuts down."""
    studies: Studies
    hints: Hints
    """Announces trials."""
    cuda: CUDAManager
    """Its device."""
    health: SlotHealth
    """What speaks against it, and which others there are."""
    streak: FailureStreak
    """Failures in a row."""
    code: CodeThatRan
    """What runs in it."""
    refusals: RefusedStudies
    """The studies of which no trial is taken here."""

    @classmethod
    def of(
        cls,
        client: redis.Redis,
        redis_url: str,
        settings: Settings,
        container: Container,
        record: ProcessRecord,
        drain_file: str,
    ) -> Self:
        """The slot that this process is.

        Args:
            client: The fleet's Redis.
            redis_url: The same, for hints.
            settings: The worker's.
            container: The managers of this process.
            record: Its entry in the registry.
            drain_file: A file whose existence means that its worker shuts down.
        """
        cuda = container.get(CUDAManager)
        studies = Studies(client, seal=settings.seal)
        return cls(
            settings=settings,
            container=container,
            record=record,
            drain=DrainSignal(drain_file),
            studies=studies,
            hints=Hints(redis_url, settings.seal),
            cuda=cuda,
            health=SlotHealth(client, settings.times, record, cuda),
            streak=FailureStreak(studies),
            code=CodeThatRan(record),
            refusals=RefusedStudies(record),
        )
