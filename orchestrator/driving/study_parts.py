"""A study whose storage is open, and who works on it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Self

import redis

from orchestrator.driving.collector import Collector
from orchestrator.driving.dispatch import Dispatcher
from orchestrator.driving.driven import DrivenStudy
from orchestrator.driving.event_filing import EventFiling
from orchestrator.driving.observer import Observer
from orchestrator.driving.wishes import Control
from workers.coordination.hints import Hints
from workers.coordination.study_lead import StudyLead
from workers.settings import Settings


@dataclass(frozen=True)
class StudyParts:
    """The study, what takes in, asks for and ends its trials, and what files its events."""

    study: DrivenStudy
    collector: Collector
    dispatcher: Dispatcher
    control: Control
    events: EventFiling
    opened_at: float = field(default_factory=time.monotonic)

    @classmethod
    def open(
        cls,
        client: redis.Redis,
        hints: Hints,
        settings: Settings,
        right: StudyLead,
        observer: Observer | None,
    ) -> Self:
        """Open the storage of a study that is to be driven.

        Args:
            client: The fleet's Redis.
            hints: Sends the Celery messages.
            settings: This orchestrator's.
            right: To drive the study.
            observer: Is shown what becomes of it.

        Raises:
            InvalidInputError: Its storage is written by another, or cannot be read.
        """
        study = DrivenStudy(client, hints, right.study, settings, str(right.owner))
        try:
            collector = Collector(study)
            events = EventFiling(client, settings.home, right.study, observer)
            events.begin(right.owner, study.generation, study.published_state())
        except BaseException:
            study.abandon()
            raise
        dispatcher = Dispatcher(study, collector, settings)
        return cls(study, collector, dispatcher, Control(study, dispatcher), events)

    @property
    def seconds_open(self) -> float:
        """How long it has been open."""
        return time.monotonic() - self.opened_at

    def close(self) -> None:
        """Write down what is to be known of it."""
        try:
            self.study.close()
        finally:
            self.events.close()
