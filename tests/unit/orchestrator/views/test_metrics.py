"""What an orchestrator tells Prometheus, from events and statuses as they come."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.driving.observer import UnfailingObserver
from orchestrator.status import StudyStatus
from orchestrator.views import metrics
from orchestrator.views.attempt_time import MAX_OPEN, AttemptTimes, Spent
from orchestrator.views.metrics import OTHERS, FleetMetrics
from workers.coordination.event_stream import Told
from workers.coordination.identity import ProcessIdentity
from workers.processes.registry import ProcessEntry
from workers.protocol.states import ProcessKind, StudyState


class Shown:
    """A `FleetMetrics`, what it is shown, and what a scrape of it reads."""

    def __init__(self) -> None:
        self.metrics = FleetMetrics()
        self._registry = CollectorRegistry()
        self._registry.register(self.metrics)

    def tell(self, at_seconds: float, kind: str, study: str | None = "s", **fields: object) -> None:
        text = json.dumps({"kind": kind, **fields})
        self.metrics.saw_events(study, [Told(f"{int(at_seconds * 1000)}-0", text)])

    def look(self, *statuses: StudyStatus, processes: tuple[ProcessEntry, ...] = ()) -> None:
        self.metrics.saw_fleet([(status, "gpu") for status in statuses], processes)

    def samples(self) -> dict[tuple[str, frozenset[str]], float]:
        text = generate_latest(self._registry).decode()
        return {
            (sample.name.removeprefix("trialfleet_"), frozenset(sample.labels.values())): (
                sample.value
            )
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def value(self, name: str, *labels: str) -> float | None:
        return self.samples().get((name, frozenset(labels)))


@pytest.fixture
def shown():
    return Shown()


def status_of(name: str, **fields) -> StudyStatus:
    given = {
        "state": StudyState.RUNNING, "objective": "finetune", "metrics": ["x"],
        "directions": ["minimize"], "wanted": 9, "trials": {"queued": 2, "running": 1},
        "wall_seconds": 1, "busy_seconds": 1, "slots": 1, "as_of": 1.0,
    }  # fmt: skip
    return StudyStatus(study=name, **{**given, **fields})


def process(kind: ProcessKind, pid: int, **fields) -> ProcessEntry:
    return ProcessEntry(identity=ProcessIdentity("host", "boot", pid, 1), kind=kind, **fields)


def test_a_killed_attempt_trained_up_to_its_checkpoint_and_the_rest_is_lost(shown):
    shown.tell(100, "asked", trial=0)
    shown.tell(103, "claimed", trial=0, attempt=1)
    shown.tell(105, "first_step", trial=0, attempt=1, after_ms=1500)
    shown.tell(110, "checkpoint", trial=0, attempt=1, step=5)
    shown.tell(113, "requeued", trial=0, cause="died", held_ms=10_000, after_ms=1500, wait_ms=2000)
    shown.tell(116, "claimed", trial=0, attempt=2)
    shown.tell(120, "ended", trial=0, state="COMPLETE", held_ms=4000, after_ms=500)

    assert shown.value("slot_seconds_total", "s", "trained") == pytest.approx(5.5 + 3.5)
    assert shown.value("slot_seconds_total", "s", "warming") == pytest.approx(1.5 + 0.5)
    assert shown.value("slot_seconds_total", "s", "lost") == pytest.approx(3.0)
    assert shown.value("requeues_total", "s", "died") == 1
    assert shown.value("losses_total", "s", "died") == 1
    assert shown.value("trials_ended_total", "s", "complete") == 1
    assert shown.value("claims_total", "s") == 2
    assert shown.value("claim_latency_seconds_sum", "s") == pytest.approx(3 + 1), "not the wait"
    assert shown.value("start_latency_seconds_count", "s") == 2, "each attempt's once"
    assert shown.value("start_latency_seconds_sum", "s") == pytest.approx(1.5 + 0.5)


@pytest.mark.parametrize(
    ("end", "spent"),
    [
        ({"kind": "ended", "state": "PRUNED"}, Spent(9, 1, 0)),
        ({"kind": "paused"}, Spent(9, 1, 0)),
        ({"kind": "ended", "state": "FAILED"}, Spent(0, 1, 9)),
        ({"kind": "requeued", "cause": "lease_lost"}, Spent(0, 1, 9)),
    ],
)
def test_the_time_of_an_attempt_counts_by_what_became_of_it(end, spent):
    times = AttemptTimes()
    times.take("claimed", 0, {"trial": 3})
    given = {"trial": 3, "held_ms": 10_000, "after_ms": 1000, **end}
    assert times.take(str(end["kind"]), 10_000, given).spent == spent


def test_a_trial_that_nobody_ran_and_one_whose_beginning_is_not_known_give_no_times(shown):
    shown.tell(1, "asked", trial=0)
    shown.tell(2, "ended", trial=0, state="CANCELLED", held_ms=0)
    shown.tell(3, "ended", trial=1, state="COMPLETE", held_ms=5000, after_ms=100)
    assert shown.value("slot_seconds_total", "s", "trained") is None
    assert shown.value("start_latency_seconds_count", "s") is None
    assert shown.value("trials_ended_total", "s", "complete") == 1


def test_what_a_newer_release_or_a_stranger_tells_is_counted_as_other_or_not_at_all(shown):
    shown.tell(1, "requeued", trial=0, cause="moonlight")
    shown.tell(1, "requeued", trial=0, cause=["died"])
    shown.tell(1, "ended", trial="x", state=7)
    for seed in range(300):
        rng = random.Random(seed)
        odd = [None, -1, 1.5, "1", [], {}, True, 10**30, "claimed", "ended", float("inf")]
        fields = {name: rng.choice(odd) for name in ("trial", "held_ms", "after_ms", "wait_ms")}
        shown.tell(1, rng.choice(["claimed", "ended", "requeued", "checkpoint", "x"]), **fields)
    texts = ['{"kind"', '{"a":' * 50_000, "[]", "null", "7", '"claimed"', "[" * 50_000]
    shown.metrics.saw_events("s", [Told(f"1-{at}", text) for at, text in enumerate(texts)])
    shown.metrics.saw_events(None, [Told(f"1-{at}", text) for at, text in enumerate(texts)])
    assert shown.value("requeues_total", "s", "other") >= 2
    assert shown.value("trials_ended_total", "s", "other") >= 1


def test_of_studies_and_queues_without_a_bound_only_so_many_have_time_series(shown, monkeypatch):
    monkeypatch.setattr(metrics, "MAX_NAMES", 3)
    for number in range(6):
        shown.tell(1, "claimed", study=f"s{number}", trial=0)
    shown.look(*(status_of(f"s{number}") for number in range(6)))
    assert shown.value("claims_total", "s2") == 1
    assert shown.value("claims_total", OTHERS) == 3
    assert shown.value("trials", OTHERS, "queued") == 6
    assert shown.value("queue_depth", "gpu") == 12

    shown.look(status_of("s5"))
    shown.tell(2, "claimed", study="s5", trial=1)
    assert shown.value("claims_total", "s2") is None, "it is driven no more, and makes room"
    assert shown.value("claims_total", "s5") == 1
    assert shown.value("trials", "s5", "queued") == 2


def test_what_counts_may_fail_and_no_turn_does(shown):
    observer = UnfailingObserver(shown.metrics)
    for _ in range(2):
        observer.saw_events("s", [Told("1-0", None)])
        observer.saw_fleet([None], [])
    observer.saw_events("s", [Told("1-0", json.dumps({"kind": "claimed", "trial": 0}))])
    assert shown.value("claims_total", "s") == 1


def test_no_more_trials_are_followed_than_there_is_room_for():
    times = AttemptTimes()
    for number in range(MAX_OPEN + 5):
        times.take("asked", 1, {"trial": number})
    assert times.take("claimed", 1001, {"trial": 1}).claim_latency == 1
    assert times.take("claimed", 1001, {"trial": MAX_OPEN + 1}).claim_latency is None


def test_slots_are_busy_idle_put_aside_or_draining_and_each_is_counted_once(shown):
    trial = ProcessKind.TRIAL
    shown.look(
        processes=(
            process(ProcessKind.MAIN, 1, slots=4, queues=["a", "b"]),
            process(trial, 2, parent=1, study="s"),
            process(trial, 3, parent=1, aside="CUDA broke", study="s"),
            process(trial, 4, parent=1),
            process(ProcessKind.MAIN, 5, slots=2, queues=["a"], is_draining=True),
            process(trial, 6, parent=5, study="s"),
        )
    )
    found = {state: shown.value("queue_slots", "b", state) for state in ("busy", "idle")}
    assert found == {"busy": 1, "idle": 2}
    assert shown.value("queue_slots", "a", "busy") == 2, "of both workers"
    states = ("busy", "idle", "put_aside", "draining")
    assert [shown.value("slots", state) for state in states] == [2, 2, 1, 1]
    assert shown.value("processes", "trial") == 4


def test_a_renewal_is_a_lease_that_has_more_left_than_before(shown):
    for left in (40, 30, 45, 44, 45):
        shown.look(processes=(process(ProcessKind.MAIN, 1, lease_left_seconds=left),))
    assert shown.value("renewals_total", "main") == 2
    shown.tell(1, "died", study=None, process="p")
    assert shown.value("processes_ended_total", "died") == 1


def test_a_stalled_study_and_an_old_status_show(shown, monkeypatch):
    monkeypatch.setattr(metrics, "time", SimpleNamespace(time=lambda: 91.0, monotonic=lambda: 5.0))
    shown.look(status_of("s", stalled="the disk is full"), status_of("t"))
    assert shown.value("study_stalled", "s") == 1
    assert shown.value("study_stalled", "t") == 0
    assert shown.value("status_age_seconds", "s") == 90
    assert shown.value("studies", "running") == 2
