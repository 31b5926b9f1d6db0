"""The log of events: what becomes of trials, studies and processes, from scripts to the file."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from hand_fleet import Fleet, turn_until
from waiting import wait_until

from orchestrator.driving.driven import DrivenStudy
from orchestrator.driving.driver import StudyDriver
from orchestrator.driving.event_filing import EventFiling
from orchestrator.driving.service import Service
from orchestrator.driving.stalls import Stalls
from orchestrator.handle import StudyHandle
from orchestrator.local.delete_study import delete_study
from orchestrator.storage.event_file import EventFile, events_file
from orchestrator.storage.event_history import EventHistory
from orchestrator.views.trial_life import life_of
from workers.coordination import keys
from workers.coordination.deletions import Deletions
from workers.coordination.event_stream import MAX_NEWS, EventStream
from workers.coordination.leases import TrialLeases
from workers.coordination.studies import Studies, ensure_epoch
from workers.coordination.trial_record import CheckpointRef
from workers.processes.registry import ProcessRecord, ProcessRegistry
from workers.protocol.events import Cause, EventKind, decode
from workers.protocol.messages import Result
from workers.protocol.states import Charge, ProcessKind, TrialState, Wish

NO_FILE = Path("/nonexistent/events.jsonl")


@pytest.fixture
def fleet(client, settings, tmp_path):
    return Fleet(client, settings, tmp_path)


@pytest.fixture
def leases(client):
    return TrialLeases(client, "s", ensure_epoch(client))


def news(client, study="s"):
    """All that a stream tells."""
    return list(EventHistory(EventFile(NO_FILE), EventStream(client, study)).read())


def filed(settings, study="s"):
    lines = EventFile(events_file(settings.home, study)).lines()
    return [event for line in lines if (event := decode(line))]


def told(events, *names):
    """Each event as its kind and some of its fields."""
    return [(event.kind.value, *(getattr(event, name) for name in names)) for event in events]


def test_a_trials_life_is_told_by_the_scripts_that_make_it(client, leases):
    leases.enqueue(0, {"x": 1})
    first = leases.claim(0, "a:b:1:2", 45.0, device="a/7/cpu-0")
    leases.renew(0, first.token, 45.0, 3, 1.25)
    leases.renew(0, first.token, 45.0, 4, 1.25)
    leases.report(0, first.token, 3, float("inf"))
    leases.checkpoint(0, first.token, CheckpointRef(3, "/c", "sum"))
    leases.reap(0, "process 1 on a died", most=9, backoff_seconds=0.0, dead_token=first.token)
    second = leases.claim(0, "a:b:2:3", 45.0)
    leases.release(0, second.token, cause=Cause.PAUSED)
    third = leases.claim(0, "a:b:2:3", 45.0)
    leases.commit(0, third.token, TrialState.COMPLETE, Result(values=[0.5]), None, 0.25)
    events = news(client)
    assert told(events, "attempt", "cause") == [
        ("asked", None, None),
        ("claimed", 1, None),
        ("first_step", 1, None),
        ("reported", 1, None),
        ("checkpoint", 1, None),
        ("requeued", 1, Cause.DIED),
        ("claimed", 2, None),
        ("requeued", 2, Cause.PAUSED),
        ("claimed", 3, None),
        ("ended", 3, None),
    ]
    assert (events[1].process, events[1].device, events[1].token) == (
        "a:b:1:2",
        "7/cpu-0",
        first.token,
    )
    assert events[2].after_ms == 1250
    assert (events[3].step, events[3].value) == (3, float("inf"))
    assert (events[5].detail, events[5].count) == ("process 1 on a died", 1)
    assert [events[6].step, events[8].step] == [3, 3], "each goes on from the checkpoint"
    assert (events[9].state, events[9].value, events[9].after_ms) == ("COMPLETE", 0.5, 250)


@pytest.mark.parametrize(
    ("end", "cause", "state"),
    [
        (lambda trial: trial.fail(Result(error="ValueError: no")), Cause.FAILED, None),
        (lambda trial: trial.fail(Result(error="e"), charge=Charge.LOSS), Cause.BROKE, None),
        (lambda trial: trial.fail(Result(error="e"), most=1), Cause.FAILED, "DEAD"),
        (lambda trial: trial.fail(Result(error="e"), cause=Cause.OUT_OF_MEMORY),
         Cause.OUT_OF_MEMORY, None),
        (lambda trial: trial.reap(dead_token=None), Cause.LEASE_LOST, None),
        (lambda trial: trial.reap(most=1), Cause.DIED, "DEAD"),
        (lambda trial: trial.commit("PRUNED", constraints={"oom": 1.0}),
         Cause.OUT_OF_MEMORY, "PRUNED"),
        (lambda trial: trial.settle(), Cause.SETTLED, "CANCELLED"),
    ],
)  # fmt: skip
def test_each_end_of_an_attempt_tells_its_cause(client, leases, end, cause, state):
    leases.enqueue(0, {})
    grant = leases.claim(0, "a:b:1:2", 0.001)

    class Trial:
        def fail(self, result, most=9, charge=Charge.FAILURE, cause=None):
            leases.fail(0, grant.token, result, most, 0.5, charge, cause=cause)

        def reap(self, most=9, dead_token=grant.token):
            wait_until(
                lambda: (
                    leases.reap(0, "gone", most=most, backoff_seconds=0.5, dead_token=dead_token)
                    != "LIVE"
                ),
                "the lease has run out",
            )

        def commit(self, state, **fields):
            leases.commit(0, grant.token, TrialState(state), Result(**fields))

        def settle(self):
            leases.settle(0, TrialState.CANCELLED)

    end(Trial())
    event = news(client)[-1]
    assert event.process == ("a:b:1:2" if cause is Cause.LEASE_LOST else None)
    assert (event.kind, event.cause, event.state) == (
        "ended" if state else "requeued",
        cause,
        state,
    )


def test_a_call_that_is_made_twice_is_told_once_and_a_refused_one_never(client, leases):
    leases.enqueue(0, {})
    leases.enqueue(0, {})
    for _ in range(3):
        grant = leases.claim(0, "a:b:1:2", 45.0, nonce="n")
    leases.claim(0, "a:b:9:9", 45.0)
    ref = CheckpointRef(1, "/c", "sum")
    for _ in range(3):
        leases.renew(0, grant.token, 45.0, 1, 0.5)
        leases.report(0, grant.token, 1, 0.5)
        leases.checkpoint(0, grant.token, ref)
    for token in (7, grant.token, grant.token):
        leases.release(0, token)
        leases.fail(0, token, Result(error="late"), 9, 0.0)
        leases.commit(0, token, TrialState.COMPLETE, Result(values=[1.0]))
    kinds = [event.kind.value for event in news(client)]
    assert kinds == ["asked", "claimed", "first_step", "reported", "checkpoint", "requeued"]


def test_of_reports_and_checkpoints_it_is_the_first_of_each_second(client, leases):
    leases.enqueue(0, {})
    grant = leases.claim(0, "a:b:1:2", 45.0)
    began = time.monotonic()
    for step in range(1, 201):
        leases.report(0, grant.token, step, 0.5)
        leases.checkpoint(0, grant.token, CheckpointRef(step, "/c", "sum"))
    most = time.monotonic() - began + 1
    counts = [event.kind for event in news(client)]
    assert 1 <= counts.count(EventKind.REPORTED) <= most
    assert 1 <= counts.count(EventKind.CHECKPOINT) <= most


def test_a_stream_is_bounded(client, leases):
    leases.enqueue(0, {})
    for _ in range(MAX_NEWS // 100):
        with client.pipeline() as pipeline:
            for _ in range(200):
                pipeline.xadd(keys.events("s"), {"event": "{}"})
            pipeline.execute()
    leases.claim(0, "a:b:1:2", 45.0)
    assert client.xlen(keys.events("s")) <= MAX_NEWS + 200
    assert news(client)[-1].kind is EventKind.CLAIMED


def test_an_event_is_short_whatever_its_error_says(client, leases):
    leases.enqueue(0, {})
    grant = leases.claim(0, f"{'h' * 30}:{'b' * 36}.4026531836:4194303:99999999", 45.0)
    worst = Result(error='"\\\x01é漢\U0001f600' * 400 + "\n'x")
    leases.fail(0, grant.token, worst, 9, 0.0)
    grant = leases.claim(0, f"{'h' * 30}:{'b' * 36}.4026531836:4194303:99999999", 45.0)
    died = f"process 4194303 on {'h' * 30}: no progress for 600 s, since step 7; where a step may"
    leases.reap(0, died * 3, most=9, backoff_seconds=0.0, dead_token=grant.token)
    leases.claim(0, f"{'h' * 63}:{'b' * 36}.4026531836:4194303:99999999", -9.0)
    leases.reap(0, "its lease ran out", most=9, backoff_seconds=128.0)
    raw = [fields["event"].encode() for _, fields in client.xrange(keys.events("s"))]
    assert max(map(len, raw)) < 300, raw
    assert news(client)[2].detail.startswith('"\\')


@pytest.mark.parametrize("what", ["a string", "a hash", "odd entries"])
def test_a_stream_that_holds_something_else_holds_no_trial_up(fleet, client, what):
    fleet.submit()
    client.delete(keys.events("s"))
    if what == "a string":
        client.set(keys.events("s"), "x")
    elif what == "a hash":
        client.hset(keys.events("s"), "a", "b")
    else:
        for text in ("", "x", '{"kind":', '{"kind":"asked"}\n{"id":"1-0","kind":"asked"}', "{}"):
            client.xadd(keys.events("s"), {"event": text})
        client.xadd(keys.events("s"), {"other": "x"})
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.is_queued(0), "the first trial is enqueued")
        for number in range(4):
            turn_until(service, lambda n=number: fleet.leases.is_queued(n), "the next one")
            fleet.commit(number, 0.5)
        turn_until(service, lambda: service.is_done("s"), "the study is over")
    assert service.status("s") is None
    assert StudyHandle("s", fleet.settings).status().trials["complete"] == 4


def test_what_people_want_of_a_study_is_told_where_it_changes(fleet, client):
    fleet.submit()
    studies = Studies(client)
    for wish in (Wish.PAUSE, Wish.PAUSE, Wish.RUN, Wish.STOP):
        studies.want("s", wish)
    assert told(news(client), "wish") == [
        ("submitted", None),
        ("wished", "pause"),
        ("wished", "run"),
        ("wished", "stop"),
    ]


def test_the_orchestrator_files_a_study_from_its_beginning_to_its_end(fleet, client, settings):
    fleet.submit(trials=2)
    with fleet.service() as service:
        for number in range(2):
            turn_until(service, lambda n=number: fleet.leases.is_queued(n), "the next trial")
            fleet.commit(number, 0.5)
        turn_until(service, lambda: service.is_done("s"), "the study is over")
    events = filed(settings)
    assert sorted(told(events, "trial")) == sorted(
        [
            ("submitted", None),
            ("driven", None),
            *[(kind, number) for number in (0, 1) for kind in ("asked", "claimed", "ended")],
            ("turned", None),
            ("turned", None),
        ]
    )
    assert events[1].generation
    assert [event.state for event in events if event.kind == "turned"] == ["running", "finished"]
    assert [event.id for event in news(client)] == [event.id for event in events]
    assert client.pttl(keys.events("s")) > 0, "what is news of a study that is over goes"


@contextmanager
def publishing_the_end(monkeypatch, before=lambda: None, after=lambda: None):
    """Do something just before, or just after, a study is shown as over."""
    publish = DrivenStudy.publish

    def published(study, facts, *, is_over, revision):
        if is_over:
            before()
        is_taken = publish(study, facts, is_over=is_over, revision=revision)
        if is_over:
            after()
        return is_taken

    with monkeypatch.context() as patch:
        patch.setattr(DrivenStudy, "publish", published)
        yield


def end_all(fleet, service, *numbers):
    for number in numbers:
        turn_until(service, lambda n=number: fleet.leases.is_queued(n), "the next trial")
        fleet.commit(number, 0.5)


def test_once_a_study_is_shown_as_over_its_events_are_filed_and_go(
    fleet, client, settings, monkeypatch
):
    seen = []

    def look():  # a kill may come here
        seen.append((client.pttl(keys.events("s")) > 0, told(filed(settings), "state")[-1]))

    fleet.submit(trials=1)
    with publishing_the_end(monkeypatch, after=look), fleet.service() as service:
        end_all(fleet, service, 0)
        turn_until(service, lambda: service.is_done("s"), "the study is over")
    assert seen == [(True, ("turned", "finished"))]


@pytest.mark.parametrize("fault", ["asked to go on", "Redis away"])
def test_the_events_of_a_study_that_was_almost_over_stay(
    fleet, client, settings, monkeypatch, fault
):
    faults = iter([fault])

    def extend():
        if next(faults, None) is None:
            return
        fleet.submit(trials=2)
        if fault == "Redis away":
            raise redis.ConnectionError("it is away")

    fleet.submit(trials=1)
    with publishing_the_end(monkeypatch, before=extend), fleet.service() as service:
        end_all(fleet, service, 0)
        turn_until(service, lambda: fleet.leases.is_queued(1), "it goes on")
        turn_until(
            service, lambda: client.pttl(keys.events("s")) == -1, "its events stay while it does"
        )
        end_all(fleet, service, 1)
        turn_until(service, lambda: service.is_done("s"), "it is over")
    assert client.pttl(keys.events("s")) > 0
    assert told(filed(settings), "state")[-1] == ("turned", "finished")


def test_a_study_that_is_over_and_looked_at_again_keeps_no_events_for_good(
    fleet, client, monkeypatch
):
    def drive_again(service):
        before = told(news(client)).count(("driven",))
        turn_until(
            service, lambda: told(news(client)).count(("driven",)) > before, "it is driven again"
        )

    fleet.submit(trials=1)
    with fleet.service() as service:
        end_all(fleet, service, 0)
        turn_until(service, lambda: service.is_done("s"), "the study is over")

    with monkeypatch.context() as patch, fleet.service() as service:
        patch.setattr(StudyDriver, "go_on", lambda *_: None)  # it does not get so far
        drive_again(service)
        service._roster.abandon("s")  # it writes nothing more of it, as one that was killed
    assert client.pttl(keys.events("s")) > 0
    fleet.submit(trials=2)
    with fleet.service() as service:
        drive_again(service)
        turn_until(
            service, lambda: client.pttl(keys.events("s")) == -1, "it goes on, and they stay"
        )


def test_a_study_that_cannot_be_closed_has_its_last_events_filed(
    fleet, client, settings, monkeypatch
):
    def close(_study):
        EventStream(client, "s").tell(EventKind.STALLED, detail="the last")
        raise OSError("the disk is gone")

    fleet.submit(trials=1)
    with monkeypatch.context() as patch, fleet.service() as service:
        patch.setattr(DrivenStudy, "close", close)
        end_all(fleet, service, 0)
        turn_until(service, lambda: service.is_done("s"), "the study is over")
        close_storage = service._roster.drivers["s"].study.abandon
        service._roster.leave("s")
        turn_until(service, lambda: "s" not in service._roster.endings, "it is left")
        close_storage()
    assert ("stalled", "the last") in told(filed(settings), "detail")
    assert client.pttl(keys.events("s")) > 0


def test_a_killed_orchestrator_loses_no_event_and_doubles_none(fleet, settings):
    fleet.submit(trials=6)
    for number in range(6):
        with fleet.service() as service:
            turn_until(service, lambda n=number: fleet.leases.is_queued(n), "the next trial")
            fleet.commit(number, 0.5)
            if number % 2:
                turn_until(
                    service, lambda n=number: len(filed(settings)) > 3 * n, "some of it is filed"
                )
            service._roster.abandon("s")  # it writes nothing more of it, as one that was killed
    with fleet.service() as service:
        turn_until(service, lambda: service.is_done("s"), "the study is over")
    events = filed(settings)
    trials = [each for each in told(events, "trial") if each[1] is not None]
    assert sorted(trials) == sorted(
        (kind, number) for number in range(6) for kind in ("asked", "claimed", "ended")
    )
    assert [event.place for event in events] == sorted(event.place for event in events)


def test_a_disk_that_takes_no_events_holds_no_study_up(fleet, settings):
    fleet.submit(trials=1)
    events_file(settings.home, "s").mkdir(parents=True)  # in the file's place
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.is_queued(0), "the trial is enqueued")
        fleet.commit(0, 0.5)
        turn_until(service, lambda: service.is_done("s"), "the study is over")
    events_file(settings.home, "s").rmdir()
    fleet.submit(trials=2)
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.is_queued(1), "it goes on")
        turn_until(service, lambda: filed(settings), "what was not filed is")
    assert ("ended", 0) in told(filed(settings), "trial")


def test_a_study_that_stalls_says_so(fleet, client, monkeypatch):
    fleet.submit()
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.is_queued(0), "it is driven")
        monkeypatch.setattr(
            "orchestrator.driving.dispatch.Dispatcher.ask",
            lambda *_: (_ for _ in ()).throw(ArithmeticError("no sample")),
        )
        fleet.commit(0, 0.5)
        turn_until(service, lambda: "stalled" in dict(told(news(client), "detail")), "it stalls")
    assert "no sample" in dict(told(news(client), "detail"))["stalled"]


def test_processes_are_told_as_they_come_drain_leave_and_die(client, settings):
    registry = ProcessRegistry(client, settings.times)
    worker = ProcessRecord(registry, ProcessKind.MAIN, fields={"slots": 1})
    child = ProcessRecord(registry, parent=5, fields={"device": "host/5/cpu-0"})
    child.identity = child.identity._replace(pid=1)
    for record in (worker, child):
        record.register()
        record.update(study=None)
        record.beat()
    worker.update(is_draining=True)
    worker.update(stalled=[])
    child.update(study="s", trial=3, token=9)
    registry.gone(child.identity)
    registry.gone(child.identity)
    worker.gone()
    assert told(news(client, None), "role", "pid", "device", "study", "trial") == [
        ("born", "main", worker.identity.pid, None, None, None),
        ("born", "trial", 1, "5/cpu-0", None, None),
        ("drained", None, worker.identity.pid, None, None, None),
        ("died", None, 1, None, "s", 3),
        ("left", None, worker.identity.pid, None, None, None),
    ]


def test_the_fleets_own_events_are_filed_in_the_home(fleet, settings):
    fleet.submit()
    with Service(settings) as service:
        turn_until(service, lambda: filed(settings, None), "they are filed")
    assert ("left", None) in told(filed(settings, None), "role"), "the orchestrator itself, too"


def test_a_deleted_study_leaves_no_events(fleet, client, settings):
    fleet.submit(trials=1)
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.is_queued(0), "it is driven")
        turn_until(service, lambda: filed(settings), "some is filed")
    delete_study("s", settings)
    assert not client.exists(keys.events("s"))
    assert not events_file(settings.home, "s").exists()


def test_a_study_that_another_one_has_deleted_stalls_without_a_trace(fleet, client, monkeypatch):
    def open_late(*_arguments):
        Deletions(client).finish("s")
        raise ArithmeticError("it is gone")

    stalled, note = [], Stalls.note

    def note_too(stalls, name, reason):
        stalled.append(name)
        return note(stalls, name, reason)

    fleet.submit(trials=1)
    with monkeypatch.context() as patch, Service(fleet.settings) as service:
        patch.setattr(DrivenStudy, "__init__", open_late)
        patch.setattr(Stalls, "note", note_too)
        turn_until(service, lambda: not Studies(client).exists("s"), "it is deleted")
        turn_until(service, lambda: "s" not in service._roster, "it is left")
        assert stalled == ["s"]
    assert [key for key in client.keys("*") if "{s}" in key] == []


def test_what_people_want_of_a_study_while_it_is_deleted_leaves_no_event(
    fleet, client, monkeypatch
):
    forget = Studies.forget

    def forget_early(studies, name):
        forget(studies, name)
        studies.want(name, Wish.PAUSE)

    fleet.submit()
    with monkeypatch.context() as patch:
        patch.setattr(Studies, "forget", forget_early)
        Deletions(client).finish("s")
    assert [key for key in client.keys("*") if "{s}" in key] == []


def test_a_life_goes_on_in_a_redis_that_lost_its_data(client, settings):
    filing = EventFiling(client, settings.home, "s")
    for owner in ("a:b:1:2", "a:b:3:4"):
        client.flushall()
        leases = TrialLeases(client, "s", ensure_epoch(client))
        leases.enqueue(0, {"x": 1})
        grant = leases.claim(0, owner, 45.0, device="a/7/cpu-0")
        filing.file_all()
    leases.commit(0, grant.token, TrialState.COMPLETE, Result(values=[0.5]))
    file = EventFile(events_file(settings.home, "s"))
    life = life_of("s", 0, EventHistory(file, EventStream(client, "s")).read())
    assert (life.num_asked, life.state, life.value) == (2, "COMPLETE", 0.5)
    assert [(each.number, each.pid, each.ended_as) for each in life.attempts] == [
        (1, 1, None),
        (2, 3, "COMPLETE"),
    ]


def test_a_line_of_the_file_is_plain_json(fleet, settings):
    fleet.submit()
    with fleet.service() as service:
        turn_until(service, lambda: fleet.leases.is_queued(0), "it is driven")
    for line in events_file(settings.home, "s").read_text().splitlines():
        assert {"id", "kind"} <= json.loads(line).keys()
