"""A study's report as one document: all that its file shows, in whatever format.

It is made from what lies in the storage and in the file of events, and from what Redis has where
that answers.

Invariant: nothing is changed, and no text of it holds a password or token that is known here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final, cast

import optuna
from optuna.trial import FrozenTrial
from pydantic import BaseModel

from orchestrator.dashboard.curves import MAX_POINTS, NUM_BEST, curves
from orchestrator.dashboard.importances import Importances
from orchestrator.dashboard.timeline import Timeline
from orchestrator.dashboard.trial_columns import log_parameters
from orchestrator.handle import StudyHandle
from orchestrator.reporting.chart_data import ChartData, chart_data
from orchestrator.reporting.code_facts import CodeFact, code_facts
from orchestrator.reporting.failures import Failure, failures
from orchestrator.reporting.sentences import asked, outcome
from orchestrator.status import StudyStatus
from orchestrator.storage.attributes import SPEC_ATTR
from orchestrator.storage.best_trials import best_first
from orchestrator.storage.event_file import EventFile, events_file
from orchestrator.storage.event_history import EventHistory
from orchestrator.submission.fixed_study import fixed_fields
from orchestrator.submission.study_file import write_study_file
from orchestrator.views.slot_time import SlotTime, slot_time
from orchestrator.views.trial_table import TrialTable, value_columns
from workers.coordination.connection import connect
from workers.coordination.event_stream import EventStream
from workers.coordination.rights import Role
from workers.passwords import hide_in, learn_environment
from workers.protocol.errors import (
    InvalidInputError,
    RedisUnavailableError,
    StudyNotKnownError,
)
from workers.protocol.events import Event
from workers.protocol.spec import StudySpec
from workers.settings import Settings

#: Bars of the time line: the latest.
_MAX_BARS: Final = 600


class Report(BaseModel):
    """What there is to say of a study."""

    study: str
    made_at: float
    """In seconds since 1970."""
    release: str
    """Of the trialfleet that made it."""
    status: StudyStatus
    metrics: list[str]
    """The names of its values; made up where the study names none."""
    logs: list[str]
    """Parameters whose axis is logarithmic."""
    asked: list[str]
    outcome: list[str]
    notes: list[str]
    """What is left out of this report, and why."""
    charts: ChartData
    curves: list[dict[str, Any]]
    importances: dict[str, Any]
    timeline: list[dict[str, Any]]
    slot_time: SlotTime
    failures: list[Failure]
    code: list[CodeFact]
    front: list[int]
    """Of a study with several directions: the trials on its Pareto front."""
    best_study_file: str | None
    """A study file of the best trial's parameters, ready to run."""


@dataclass(frozen=True)
class StudyAtHand:
    """A study with all that is known of it here.

    Args:
        study: None where its results are on another machine, or nothing has begun.
    """

    handle: StudyHandle
    status: StudyStatus
    spec: StudySpec
    study: optuna.Study | None
    trials: Sequence[FrozenTrial]
    events: Sequence[Event]

    @classmethod
    def read(cls, name: str, settings: Settings) -> StudyAtHand:
        """Read it.

        Raises:
            StudyNotKnownError: Nobody knows a study of this name.
            InvalidInputError: It was not made by trialfleet.
            RedisUnavailableError: `FLEET_REDIS_URL` is set and does not answer.
        """
        learn_environment(os.environ)
        handle = StudyHandle(name, settings)
        status = handle.kept_status()
        study = None
        with suppress(StudyNotKnownError, InvalidInputError):  # not begun, or on another machine
            study = handle.study
        if study is not None and SPEC_ATTR not in study.user_attrs:
            raise InvalidInputError(f"study {name!r} was not made by trialfleet; read it by Optuna")
        trials = [] if study is None else study.get_trials(deepcopy=False)
        spec = handle.spec() if study is None else StudySpec.read(study.user_attrs[SPEC_ATTR])
        return cls(handle, status, spec, study, trials, _events(name, settings))

    @property
    def table(self) -> TrialTable:
        """All trials as a table, as `trialfleet export` has it."""
        columns = value_columns(self.spec.metrics, len(self.spec.all_directions))
        running = {each.number for each in self.status.running}
        attrs = {} if self.study is None else self.study.user_attrs
        return TrialTable.of(self.trials, columns, running, attrs)


def report_of(found: StudyAtHand) -> Report:
    """The report on a study."""
    trials, spec = found.trials, found.spec
    best = best_first(trials, spec.all_directions)
    importances = Importances().of(found.study, trials)
    metrics = _metrics(spec)
    logs = frozenset(log_parameters(trials))
    charts = chart_data(trials, best, next(iter(importances["metrics"]), {}), logs)
    now = None if found.status.is_over else time.time()
    spent = slot_time(found.events, now)
    running = (each.number for each in found.status.running)
    drawn = curves(trials, (each.number for each in best[:NUM_BEST]), running)
    report = Report(
        study=spec.name,
        made_at=time.time(),
        release=version("trialfleet"),
        status=found.status,
        metrics=metrics,
        logs=sorted(logs),
        asked=list(asked(spec, metrics)),
        outcome=list(outcome(found.status, metrics, spent)),
        notes=list(_notes(found, charts, drawn)),
        charts=charts,
        curves=drawn,
        importances=importances,
        timeline=_bars(found.events),
        slot_time=spent,
        failures=failures(trials),
        code=code_facts(trials, {} if found.study is None else found.study.user_attrs),
        front=[trial.number for trial in best] if len(metrics) > 1 else [],
        best_study_file=write_study_file(fixed_fields(spec, best[0])) if best else None,
    )
    return Report.model_validate(hide_in(report.model_dump()))


def _events(name: str, settings: Settings) -> list[Event]:
    """All that is told of it; without Redis, what the file has."""
    file = EventFile(events_file(settings.home, name))
    try:
        client = connect(settings, Role.VIEWER)
    except RedisUnavailableError:
        return list(EventHistory(file, None, name).read())
    with client:
        return list(EventHistory(file, EventStream(client, name), name).read())


def _bars(events: Iterable[Event]) -> list[dict[str, Any]]:
    timeline = Timeline()
    timeline.take(events)
    return cast("list[dict[str, Any]]", timeline.since(-1)["bars"][-_MAX_BARS:])


def _metrics(spec: StudySpec) -> list[str]:
    count = len(spec.all_directions)
    made_up = ["value"] if count == 1 else [f"value {at + 1}" for at in range(count)]
    return list(spec.metrics) if len(spec.metrics) == count else made_up


def _notes(found: StudyAtHand, charts: ChartData, drawn: Sequence[dict[str, Any]]) -> Iterable[str]:
    if found.study is None:
        yield (
            "The results are on another machine, or no trial has begun: this report has no trials."
            " Make it where `trialfleet serve` runs, or set FLEET_HOME or FLEET_STORAGE to theirs."
        )
    num_complete = charts.states.count("C")
    if charts.num_drawn < num_complete:
        yield (
            f"Charts of parameters show {charts.num_drawn:,} of {num_complete:,} complete trials:"
            " the best, and others evenly chosen. --format csv has all."
        )
    if len(charts.params) < charts.num_params:
        yield (
            f"Charts show {len(charts.params)} of {charts.num_params} parameters: those that"
            " matter most. --format csv has all."
        )
    reported = sum(bool(trial.intermediate_values) for trial in found.trials)
    if len(drawn) < reported:
        yield (
            f"{len(drawn)} of {reported:,} curves are drawn, of {MAX_POINTS} points at most: those"
            " of the best trials, the latest, those that run, and others evenly chosen."
        )
    if found.trials and not found.events:
        yield "No events of this study are on this machine: where slot time went is not known."
