"""What is shown of a study that is driven: its status, when it is time for that, and its end.

Invariant: a study is done once its end was shown, and nothing was asked of it meanwhile.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, Final

from orchestrator.driving.collector import Collector
from orchestrator.driving.driven import DrivenStudy
from orchestrator.driving.event_filing import EventFiling
from orchestrator.driving.surroundings import Surroundings
from orchestrator.status import StudyStatus
from orchestrator.status_building import Circumstances, build_status, study_state
from workers.protocol.states import Wish

#: Between two publications of a status that tells nothing new of the study's state.
_PUBLISH_SECONDS: Final = 0.25


class Publication:
    """The status of one study, published turn by turn.

    Args:
        home: Where its trials leave their results.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._published_at = 0.0
        #: why it does not get on, of a study that was not opened yet
        self._stalled: str | None = None
        #: while the status is written, by a turn or by the loop beside it
        self._writing = threading.Lock()
        self.status: StudyStatus | None = None
        """The latest; None until the study was opened."""
        self.is_stale = True
        """Whether something has happened that the status does not tell."""
        self.is_done = False
        """Whether the study is over, and its `on_end` was told."""

    def look(self, study: DrivenStudy, collector: Collector, around: Surroundings) -> StudyStatus:
        """See how the study stands now."""
        status = build_status(
            study.spec,
            study.tally,
            self._circumstances(study, collector, around),
            leases=study.leases,
        ).model_copy(update={"as_of": time.time()})
        with self._writing:
            self.status = status
        return status

    def _circumstances(
        self, study: DrivenStudy, collector: Collector, around: Surroundings
    ) -> Circumstances:
        limit = study.limits.reached
        return Circumstances(
            wall_seconds=study.clock.seconds,
            slots=around.slots,
            put_aside=around.put_aside,
            results=str(self._home / "studies" / study.name / "trials"),
            wish=around.wish,
            is_exhausted=study.is_exhausted,
            num_points=study.num_points,
            ended_by=None if limit is None else limit.reason,
            limit=None if limit is None else limit.setting,
            traceback=study.limits.traceback,
            budgets=study.limits.budgets,
            set_aside=collector.set_aside,
            processes=around.processes,
        )

    @property
    def stalled(self) -> str | None:
        """Why the study does not get on, as it was last shown."""
        return self._stalled if self.status is None else self.status.stalled

    def show_stall(self, reason: str | None) -> None:
        """Say why the study does not get on, or that it does; a turn may be publishing."""
        self._stalled = reason
        with self._writing:
            if self.status is not None:
                self.status = self.status.model_copy(update={"stalled": reason})

    def is_due(self, study: DrivenStudy, wish: Wish) -> bool:
        """Whether it is time to publish."""
        is_time = time.monotonic() - self._published_at >= _PUBLISH_SECONDS
        return self.is_stale and (is_time or self.has_turned(study, wish) or self._is_beaten(study))

    def has_turned(self, study: DrivenStudy, wish: Wish) -> bool:
        """Whether the study is in another state than its status says."""
        starts_no_more = study.limits.reason is not None or study.is_exhausted
        state = study_state(study.spec, study.tally, starts_no_more=starts_no_more, wish=wish)
        return self.status is None or state is not self.status.state

    def _is_beaten(self, study: DrivenStudy) -> bool:
        """Whether another trial is the best than the status says: running ones look at it."""
        best = study.tally.best
        shown = None if self.status is None else self.status.best
        return bool(best) and (shown is None or shown.number != best[0].number)

    def publish(
        self,
        study: DrivenStudy,
        collector: Collector,
        events: EventFiling,
        around: Surroundings,
        revision: str,
    ) -> None:
        """Show how the study stands, and see to its end, if it has come.

        Args:
            study: The study.
            collector: What could not be taken in of it.
            events: Files what happened to it.
            around: How things stand around it.
            revision: That of the study, as people handed it in, by which all was done.
        """
        self._published_at = time.monotonic()
        study.keep_limits()
        status = self.look(study, collector, around)
        # who waits for the study waits for this, too
        is_done = status.is_over and study.tell_end(status)
        status = status.model_copy(
            update={"end_problem": study.end_problem, "former": study.former}
        )
        with self._writing:
            self.status = status
        events.turn(status)
        if is_done:
            events.end()
        is_taken = study.publish(_facts(study, status), is_over=is_done, revision=revision)
        self.is_done = is_done and is_taken
        if not self.is_done:
            events.go_on()
            events.file()
        self.is_stale = status.is_over and not self.is_done


def _facts(study: DrivenStudy, status: StudyStatus) -> dict[str, Any]:
    return {
        "status": status.model_dump(mode="json"),
        "status_of": study.spec.digest(),
        "best_value": _first_value(status),
        "kept_models": study.kept_models(),
        "stalled": None,
    }


def _first_value(status: StudyStatus) -> float | None:
    best = status.best
    if best is None or best.value is not None:
        return None if best is None else best.value
    return best.values[0] if best.values else None
