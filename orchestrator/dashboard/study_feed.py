"""One study that somebody looks at: its status, its trials and its time line, kept up to date.

Invariant: nothing here writes; what is read goes on from where it was read last, so that a look at
a study of many trials costs what has changed.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

import optuna
from optuna.trial import FrozenTrial

from orchestrator.dashboard.actions import offers
from orchestrator.dashboard.curves import NUM_BEST, curves
from orchestrator.dashboard.importances import Importances
from orchestrator.dashboard.timeline import Timeline
from orchestrator.dashboard.trial_columns import TrialColumns
from orchestrator.handle import StudyHandle
from orchestrator.status import StudyStatus
from orchestrator.storage.attributes import GENERATION_ATTR
from orchestrator.storage.best_trials import best_first
from orchestrator.storage.event_file import EventFile, events_file
from orchestrator.storage.event_history import EventHistory
from workers.coordination.event_stream import EventStream
from workers.coordination.kept_connection import KeptConnection
from workers.coordination.rights import Role
from workers.coordination.studies import Studies
from workers.protocol.errors import (
    FleetError,
    InvalidInputError,
    RedisUnavailableError,
    StudyNotKnownError,
)
from workers.protocol.events import Event
from workers.protocol.parameters import CategoricalDimension, Dimension
from workers.settings import Settings

#: Revisions of all studies: one that is read anew goes on behind what any page has seen.
_REVISIONS: Final = itertools.count(1)


#: Trials whose events are held: of those that pages show, and a few before.
_MAX_LIVES: Final = 16


class StudyFeed:
    """One study, read by many pages; its methods block, and are called by threads.

    Args:
        name: The study.
        settings: Where the fleet is.

    Raises:
        StudyNotKnownError: No study can have this name.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        #: at which revision the rows begin that there are; who has an earlier one has others
        self.revision = self._began = next(_REVISIONS)
        self.handle = StudyHandle(name, settings)
        self._settings = settings
        self._connection = KeptConnection.of(settings, Role.VIEWER)
        self._reading = threading.Lock()
        self._study: optuna.Study | None = None
        self._columns = TrialColumns()
        self._status: StudyStatus | None = None
        self._space: dict[str, Any] = {}
        self._telling = threading.Lock()
        self._timeline = Timeline()
        self._history = EventHistory(EventFile(events_file(settings.home, name)), None, name)
        self._importances = Importances()
        self._lives: OrderedDict[int, tuple[EventHistory, list[Event]]] = OrderedDict()
        self._generation: str | None = None

    def status(self) -> dict[str, Any]:
        """The study now, without its trials: at once, however many it has."""
        return self._document(self.handle.status(), self._read_space())

    def look(self) -> int:
        """Read what is new; the revision at which it is."""
        with self._reading:
            status = self.handle.status()
            trials = self._read_trials()
            space = self._read_space()
            is_other = (status, space) != (self._status, self._space)
            revision = next(_REVISIONS)
            if self._columns.take(trials or (), revision) or is_other:
                self.revision = revision
            self._status, self._space = status, space
            return self.revision

    def since(self, revision: int) -> dict[str, Any]:
        """What changed after a revision that a page has; of -1, all.

        It is all, and `again` says so, if the page's revision is of rows that are no more: the
        study was deleted and submitted again, or is read anew.
        """
        with self._reading:
            if self._status is None:
                self._status, self._space = self.handle.status(), self._read_space()
            is_whole = not self._began <= revision <= self.revision
            return {
                "revision": self.revision,
                "again": is_whole,
                "study": self._document(self._status, self._space),
                "trials": self._columns.since(-1 if is_whole else revision),
                "has_results": self._study is not None,
            }

    def curves(self) -> dict[str, Any]:
        """The curves that are worth a look, and how many trials have one."""
        trials = self.trials()
        status = self.handle.status()
        best = best_first(trials, status.directions)[:NUM_BEST]
        running = (each.number for each in status.running)
        return {
            "curves": curves(trials, (each.number for each in best), running),
            "reported": sum(bool(each.intermediate_values) for each in trials),
        }

    def importances(self) -> dict[str, Any]:
        """How much each parameter matters, by Optuna; kept until there are more trials."""
        study, trials = self.results() or (None, [])
        if study is None:
            self._refuse_unknown()
        return self._importances.of(study, trials)

    def timeline(self, revision: int) -> dict[str, Any]:
        """The attempts on slots that began or ended after a revision of the time line."""
        with self._telling, self.news() as stream:
            self._history.stream = stream
            self._timeline.take(self._history.read())
            if self._timeline.generation is None:  # nobody has ever driven it
                self._refuse_unknown()
            return {**self._timeline.since(revision), "now": self._history.now}

    def trials(self) -> list[FrozenTrial]:
        """All trials; none where the results are on another machine."""
        with self._reading:
            return list(self._read_trials() or ())

    def results(self) -> tuple[optuna.Study, list[FrozenTrial]] | None:
        """The study in Optuna's own terms, and its trials; None as above."""
        with self._reading:
            trials = self._read_trials()
            return None if self._study is None else (self._study, list(trials or ()))

    @contextmanager
    def news(self) -> Iterator[EventStream | None]:
        """The study's events that are news; None where Redis is away."""
        with ExitStack() as stack:
            stream = None
            with suppress(RedisUnavailableError):
                client = stack.enter_context(self._connection.use())
                stream = EventStream(client, self.name)
            yield stream

    def told_of(self, trial: int) -> tuple[list[Event], float]:
        """The events of one trial, and until when they tell, in seconds since 1970.

        Of the trials that were looked at last, they are read on from where they were read.
        """
        with self._telling, self.news() as stream:
            if stream is not None:
                self._forget_lives_of_another(stream)
            if trial not in self._lives:
                file = EventFile(events_file(self._settings.home, self.name))
                self._lives[trial] = EventHistory(file, None, self.name, trial=trial), []
            self._lives.move_to_end(trial)
            history, told = self._lives[trial]
            history.stream = stream
            told += (event for event in history.read() if event.trial == trial)
            if len(self._lives) > _MAX_LIVES:
                self._lives.popitem(last=False)
            return list(told), history.now

    def sign_of(self, trial: int) -> object:
        """Differs when something of a trial does that its own page shows."""
        with self._reading:
            status = self._status or self.handle.status()
            groups = (status.running, status.retried, status.waiting)
            told = [each for group in groups for each in group if each.number == trial]
            return self._columns.sign_of(trial), told, status.wish

    def _forget_lives_of_another(self, stream: EventStream) -> None:
        """Hold no events of a study that was deleted and submitted again."""
        generation = Studies(stream.client).origin(self.name).generation
        if generation != self._generation:
            self._lives.clear()
        self._generation = generation

    def _read_trials(self) -> Sequence[FrozenTrial] | None:
        """All trials as the storage has them; what was open is read on."""
        # another journal may lie at its place, and be read as anything; then from its start
        with suppress(Exception):
            if self._study is not None and not self._is_another(self._study):
                found = self._study.get_trials(deepcopy=False)
                if len(found) >= len(self._columns):
                    return found
        # the first look; or the study was deleted, or written anew in a wider space
        self._study = None
        if len(self._columns):
            self._columns = TrialColumns()
            self.revision = self._began = next(_REVISIONS)
        try:
            self._study = self.handle.study
        except RedisUnavailableError:
            raise
        except (StudyNotKnownError, InvalidInputError):  # not begun, or on another machine
            return None
        return self._study.get_trials(deepcopy=False)

    def _is_another(self, study: optuna.Study) -> bool:
        """Whether the fleet has another study of this name by now than the one that is open."""
        with self.news() as stream:
            if stream is None:
                return False
            wanted = Studies(stream.client).origin(self.name).generation
        return wanted is not None and study.user_attrs.get(GENERATION_ATTR) not in {None, wanted}

    def _document(self, status: StudyStatus, space: dict[str, Any]) -> dict[str, Any]:
        logs = self._columns.logs.union(name for name, each in space.items() if each.get("log"))
        return {
            **status.model_dump(mode="json"),
            "is_over": status.is_over,
            "offers": self.offers(status),
            "num_failed": self._num_failed(status),
            "space": space,
            "logs": sorted(logs),
        }

    def offers(self, status: StudyStatus) -> list[str]:
        """What the study takes, as it is."""
        return offers(status, self._num_failed(status), is_at_rest=self._is_at_rest())

    def _num_failed(self, status: StudyStatus) -> int:
        """Trials that could be tried again; of results elsewhere, also those that were."""
        if len(self._columns):
            return self._columns.num_failed
        return status.trials["failed"] + status.trials["dead"]

    def _refuse_unknown(self) -> None:
        """Raise `StudyNotKnownError` for a study that nobody knows; where Redis is away, none."""
        with suppress(RedisUnavailableError):
            self.handle.status()

    def _is_at_rest(self) -> bool:
        """Whether no fleet has the study: its Redis ran for as long as the fleet."""
        if self._settings.redis_url:
            return False
        with self.news() as stream:
            return stream is None

    def _read_space(self) -> dict[str, Any]:
        """The search space: what forms ask for."""
        with suppress(FleetError):
            space = self.handle.spec().space
            return {name: _dimension(each) for name, each in space.items()}
        return {}


def _dimension(dimension: Dimension) -> dict[str, Any]:
    """One of a space, with its choices also as the texts that requests have of them."""
    document: dict[str, Any] = dimension.model_dump(mode="json")
    if isinstance(dimension, CategoricalDimension):
        document["choices_json"] = [
            json.dumps(choice, ensure_ascii=False) for choice in dimension.choices
        ]
    return document
