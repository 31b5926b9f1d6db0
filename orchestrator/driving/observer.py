"""Who looks on while studies are driven: it is shown what was read anyway.

Invariant: a service does without; nothing is read or sent for an observer's sake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from orchestrator.status import StudyStatus
from workers.coordination.event_stream import Told
from workers.logs import get_logger
from workers.metrics_endpoint import metrics_served
from workers.processes.registry import ProcessEntry
from workers.protocol.plain import describe_error
from workers.settings import Settings

if TYPE_CHECKING:
    from orchestrator.views.metrics import FleetMetrics

log = get_logger(__name__)

#: Characters by which one trouble is told from another.
_MAX_TROUBLE: Final = 500


class Observer(Protocol):
    """Takes in what it is shown, from several threads, fails at nothing and is quick."""

    def saw_events(self, study: str | None, told: Sequence[Told]) -> None:
        """Take in events of a study, or of the fleet's processes, each once."""

    def saw_fleet(
        self, studies: Sequence[tuple[StudyStatus, str]], processes: Sequence[ProcessEntry]
    ) -> None:
        """Take in how all stands now: the studies that are driven, each with its queue."""


class NoObserver:
    """Nobody looks on."""

    def saw_events(self, study: str | None, told: Sequence[Told]) -> None:
        """Nothing."""

    def saw_fleet(
        self, studies: Sequence[tuple[StudyStatus, str]], processes: Sequence[ProcessEntry]
    ) -> None:
        """Nothing."""


class UnfailingObserver:
    """Shows another observer all, and fails at nothing that one fails at; each trouble is logged.

    Args:
        observer: Whose faults are no study's concern.
    """

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._trouble: str | None = None

    def saw_events(self, study: str | None, told: Sequence[Told]) -> None:
        """Show it events."""
        with self._unfailing():
            self._observer.saw_events(study, told)

    def saw_fleet(
        self, studies: Sequence[tuple[StudyStatus, str]], processes: Sequence[ProcessEntry]
    ) -> None:
        """Show it how all stands."""
        with self._unfailing():
            self._observer.saw_fleet(studies, processes)

    @contextmanager
    def _unfailing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            trouble = describe_error(error, _MAX_TROUBLE)
            if trouble != self._trouble:  # not once a turn
                log.exception("metrics_failed")
            self._trouble = trouble


@contextmanager
def metrics_observer(
    settings: Settings, tell: Callable[[str], None] = lambda _line: None
) -> Iterator[Observer]:
    """Who counts for Prometheus, and is asked meanwhile; nobody where that is not asked for.

    Args:
        settings: Where it listens.
        tell: Where people are to read that.
    """
    made: list[FleetMetrics] = []

    def make() -> FleetMetrics:
        # its package is there only where metrics are asked for
        from orchestrator.views.metrics import FleetMetrics

        made.append(FleetMetrics())
        return made[0]

    with metrics_served(settings, make, tell):
        yield UnfailingObserver(made[0]) if made else NoObserver()
