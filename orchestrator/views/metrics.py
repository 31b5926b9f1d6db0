"""What an orchestrator tells Prometheus: made of the events and statuses that it has anyway.

Invariant: as many time series as there are studies, queues, states and causes, and of names of
which there may be any number, at most `MAX_NAMES`; no trial, process or step is a label.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import prometheus_client
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from orchestrator.status import StudyStatus
from orchestrator.views.attempt_time import AttemptTimes
from workers.coordination.event_stream import Told
from workers.processes.registry import ProcessEntry
from workers.protocol.events import Cause, EventKind, place_of
from workers.protocol.states import ProcessKind, TrialState

#: How many studies, or queues, have time series of their own.
MAX_NAMES: Final = 200

#: In the place of the names of all others; no study's name holds a bracket.
OTHERS: Final = "(others)"

#: Seconds: of a claim mostly milliseconds, of a start the download of a model.
_BUCKETS: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800, 7200)

#: Causes for which an attempt is lost with its process, or with one that it needs.
_LOSSES: Final = frozenset({Cause.DIED, Cause.LOADER_DIED, Cause.BROKE, Cause.LEASE_LOST})

_CAUSES: Final = frozenset(map(str, Cause))
_STATES: Final = frozenset(state.value.lower() for state in TrialState)


class _Look(NamedTuple):
    """How all stood at one moment."""

    at: float = 0.0
    """On the clock `time.monotonic`."""
    studies: Sequence[tuple[StudyStatus, str]] = ()
    processes: Sequence[ProcessEntry] = ()


class _Names:
    """Labels for names of which there may be any number."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def label(self, name: str) -> str:
        """A name as a label: itself, as long as there is room."""
        if name not in self._known and len(self._known) >= MAX_NAMES:
            return OTHERS
        self._known.add(name)
        return name

    def make_room(self, needed: Collection[str]) -> set[str]:
        """Forget those that nobody needs, if there is no room left; which those were."""
        dropped = self._known - set(needed) if len(self._known) >= MAX_NAMES else set()
        self._known -= dropped
        return dropped


class FleetMetrics(Collector):
    """Counts what it is shown, and tells it when it is asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names, self._queues = _Names(), _Names()
        self._times: dict[str, AttemptTimes] = {}
        self._look = _Look(time.monotonic())
        self._lease_left: dict[str, float] = {}
        self._registry = CollectorRegistry()
        self._ended = self._counter("trials_ended", "Trials that ended for good.", "state")
        self._claims = self._counter("claims", "Attempts that began.")
        self._requeues = self._counter(
            "requeues", "Attempts that ended, with another to come.", "cause"
        )
        self._losses = self._counter("losses", "Attempts that ended with their process.", "cause")
        self._seconds = self._counter(
            "slot_seconds",
            "Slot time of attempts that ended: trained, warming (before the first step), or lost"
            " (made again, or for nothing).",
            "use",
        )
        self._claim_latency = self._histogram(
            "claim_latency_seconds", "From when a trial could be claimed to its claim."
        )
        self._start_latency = self._histogram(
            "start_latency_seconds", "From the claim to the first training step."
        )
        self._of_study: Final = (
            self._ended, self._claims, self._requeues, self._losses, self._seconds,
            self._claim_latency, self._start_latency,
        )  # fmt: skip
        self._processes_ended = prometheus_client.Counter(
            "trialfleet_processes_ended",
            "Processes that left by themselves, or died.",
            ["how"],
            registry=self._registry,
        )
        self._renewals = prometheus_client.Counter(
            "trialfleet_renewals",
            "Leases of processes that were seen to be renewed, once a look at most.",
            ["kind"],
            registry=self._registry,
        )

    def saw_events(self, study: str | None, told: Sequence[Told]) -> None:
        """Count events of a study, or of the fleet's processes."""
        with self._lock:
            for event in told:
                try:
                    fields, at_ms = json.loads(event.text), place_of(event.id)[0]
                except (ValueError, RecursionError):
                    continue
                if not isinstance(fields, dict):
                    continue
                kind = str(fields.get("kind"))
                if study is None:
                    if kind in {EventKind.LEFT, EventKind.DIED}:
                        self._processes_ended.labels(kind).inc()
                else:
                    self._count(study, kind, at_ms, fields)

    def saw_fleet(
        self, studies: Sequence[tuple[StudyStatus, str]], processes: Sequence[ProcessEntry]
    ) -> None:
        """Keep how all stands, for whoever asks, and count the leases that were renewed."""
        with self._lock:
            self._forget_others({status.study for status, _ in studies})
            self._queues.make_room({queue for _, queue in studies})
            self._look = _Look(time.monotonic(), studies, processes)
            before = self._lease_left
            self._lease_left = {str(each.identity): each.lease_left_seconds for each in processes}
            for each in processes:
                left = before.get(str(each.identity))
                if left is not None and each.lease_left_seconds > left:
                    self._renewals.labels(each.kind.value).inc()

    def collect(self) -> Iterator[Any]:
        """What there is to tell now."""
        yield from self._registry.collect()
        with self._lock:
            yield from self._standing(self._look)

    def _counter(self, name: str, told: str, *labels: str) -> prometheus_client.Counter:
        return prometheus_client.Counter(
            f"trialfleet_{name}", told, ["study", *labels], registry=self._registry
        )

    def _histogram(self, name: str, told: str) -> prometheus_client.Histogram:
        return prometheus_client.Histogram(
            f"trialfleet_{name}", told, ["study"], buckets=_BUCKETS, registry=self._registry
        )

    def _count(self, study: str, kind: str, at_ms: int, fields: dict[str, Any]) -> None:
        name, cause = self._names.label(study), _known(fields.get("cause"), _CAUSES)
        if kind == EventKind.CLAIMED:
            self._claims.labels(name).inc()
        elif kind == EventKind.ENDED:
            state = str(fields.get("state")).lower()
            self._ended.labels(name, _known(state, _STATES)).inc()
        elif kind == EventKind.REQUEUED:
            self._requeues.labels(name, cause).inc()
        if cause in _LOSSES and kind in {EventKind.ENDED, EventKind.REQUEUED}:
            self._losses.labels(name, cause).inc()
        told = self._times.setdefault(study, AttemptTimes()).take(kind, at_ms, fields)
        if told.claim_latency is not None:
            self._claim_latency.labels(name).observe(told.claim_latency)
        if told.start_latency is not None:
            self._start_latency.labels(name).observe(told.start_latency)
        if told.spent is not None:  # what is undone later stays told: a counter never falls
            for use, seconds in told.spent._asdict().items():
                self._seconds.labels(name, use).inc(seconds)

    def _forget_others(self, driven: set[str]) -> None:
        """Follow nothing of studies that are driven no more."""
        self._times = {name: times for name, times in self._times.items() if name in driven}
        for dropped in self._names.make_room(driven):
            for metric in self._of_study:
                metric.remove_by_labels({"study": dropped})

    def _standing(self, look: _Look) -> Iterator[GaugeMetricFamily]:
        """How studies, slots and processes stood at the last look."""
        yield _gauge(
            "look_age_seconds",
            "Since the orchestrator last had a whole look at the fleet.",
            [],
            {(): time.monotonic() - look.at},
        )
        yield from self._of_studies([status for status, _ in look.studies])
        depth = Counter[tuple[str, ...]]()
        for status, queue in look.studies:
            depth[self._queues.label(queue),] += status.trials.get("queued", 0)
        yield _gauge("queue_depth", "Trials that wait for a slot.", ["queue"], depth)
        slots, of_queues = self._slots(look.processes)
        yield _gauge("slots", "Slots of the fleet.", ["state"], slots)
        yield _gauge(
            "queue_slots",
            "Slots that take trials of a queue: one that reads several counts in each.",
            ["queue", "state"],
            of_queues,
        )
        kinds = Counter((each.kind.value,) for each in look.processes)
        yield _gauge("processes", "Processes that beat.", ["kind"], kinds)

    def _of_studies(self, statuses: Sequence[StudyStatus]) -> Iterator[GaugeMetricFamily]:
        states = Counter((status.state.value,) for status in statuses)
        trials = Counter[tuple[str, ...]]()
        wanted, stalled = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
        ages: dict[tuple[str, ...], float] = {}
        now = time.time()
        for status in statuses:
            name = self._names.label(status.study)
            for state, count in status.trials.items():
                trials[name, state] += count
            wanted[name,] += status.wanted
            stalled[name,] += status.stalled is not None
            if status.as_of is not None:
                ages[name,] = max(ages.get((name,), 0.0), now - status.as_of)
        yield _gauge("studies", "Studies that are driven.", ["state"], states)
        yield _gauge("trials", "Trials by where they are now.", ["study", "state"], trials)
        yield _gauge("trials_wanted", "Trials that a study is to run.", ["study"], wanted)
        yield _gauge(
            "study_stalled", "Whether the orchestrator cannot go on with it.", ["study"], stalled
        )
        yield _gauge("status_age_seconds", "Age of the published status.", ["study"], ages)

    def _slots(
        self, processes: Sequence[ProcessEntry]
    ) -> tuple[Counter[tuple[str, ...]], Counter[tuple[str, ...]]]:
        """Slots by what they do: all of them, and those that read a queue."""
        taken: defaultdict[tuple[str, int], Counter[str]] = defaultdict(Counter)
        for slot in processes:
            if slot.kind is ProcessKind.TRIAL and (slot.aside or slot.study):
                place = slot.identity.host, slot.parent
                taken[place]["put_aside" if slot.aside else "busy"] += 1
        found = Counter[tuple[str, ...]]({(state,): 0 for state in _SLOT_STATES})
        of_queues = Counter[tuple[str, ...]]()
        for main in processes:
            if main.kind is not ProcessKind.MAIN:
                continue
            states = taken[main.identity.host, main.identity.pid]
            rest = "draining" if main.is_draining else "idle"
            states[rest] += max(0, main.slots - states.total())
            for state in _SLOT_STATES:
                found[state,] += states[state]
                for queue in {self._queues.label(queue) for queue in main.queues}:
                    of_queues[queue, state] += states[state]
        return found, of_queues


_SLOT_STATES: Final = ("busy", "idle", "put_aside", "draining")


def _gauge(
    name: str, told: str, labels: Sequence[str], values: Mapping[Any, float]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"trialfleet_{name}", told, labels=labels)
    for label, value in values.items():
        family.add_metric(label, value)
    return family


def _known(value: Any, known: Collection[str]) -> str:
    """A value of an event as a label: those of a newer release count together."""
    return value if isinstance(value, str) and value in known else "other"
