"""What the status of a study tells of attempts that ended, with another one to come."""

from __future__ import annotations

import pytest
from hand_fleet import Fleet, turn_until

from orchestrator.storage.event_file import EventFile, events_file
from orchestrator.storage.event_history import EventHistory
from orchestrator.views.explain import explain
from orchestrator.views.trial_life import life_of
from workers.coordination.event_stream import EventStream
from workers.coordination.trial_record import CheckpointRef
from workers.disk.checkpoint_content import why_not_loaded
from workers.protocol.events import Cause
from workers.protocol.messages import Pause, Result, read_counts
from workers.protocol.states import Charge, TrialState


@pytest.fixture
def fleet(client, settings, tmp_path):
    return Fleet(client, settings, tmp_path)


def release(leases, token):
    assert leases.release(0, token, cause=Cause.DRAINED)


def fail(leases, token):
    assert leases.fail(0, token, Result(error="ValueError: no"), 9, 0.0) == "REQUEUED"


def hang(leases, token):
    """As the cleaner ends it, once its process has said that it stood still."""
    given = {"most": 9, "backoff_seconds": 0.0, "charge": Charge.FAILURE, "dead_token": token}
    assert leases.reap(0, "made no step", **given) == "REQUEUED"


def die(leases, token):
    assert leases.reap(0, "it died", most=9, backoff_seconds=0.0, dead_token=token) == "REQUEUED"


#: What ends an attempt, to its cause, and how many processes that takes.
ENDS = {
    "a drain": (release, "drained", 0),
    "a failure": (fail, "failed", 0),
    "a step that hangs": (hang, "no_progress", 0),
    "a process that dies": (die, "died", 1),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_trial_that_is_tried_again_says_why_the_attempt_before_ended(fleet, end):
    handle = fleet.submit(trials=1, max_failures=9)
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "it is in flight")
        end_it, cause, losses = ENDS[end]
        owner = "gpu-7:boot:12:34"
        end_it(fleet.leases, fleet.leases.claim(0, owner, 600.0).token)
        turn_until(service, lambda: handle.status().retried, "it is told")
        status = handle.status()
        (retried,) = status.retried
        told = (retried.number, retried.attempt, retried.cause, retried.host, retried.process)
        assert told == (0, 2, cause, "gpu-7", owner)
        assert retried.retry_ms is not None
        assert (status.requeued, status.losses) == ({cause: 1}, losses)
        fleet.claim(0)
        turn_until(service, lambda: handle.status().running, "it runs")
        (retried,) = handle.status().retried
        assert (retried.attempt, retried.cause, retried.retry_ms) == (2, cause, None)


def test_ends_are_counted_by_cause_over_all_trials_and_after_a_restart(fleet):
    handle = fleet.submit(trials=2, max_failures=9)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 2, "they are in flight")
        for end_it in (release, release, die, fail):
            end_it(fleet.leases, fleet.claim(0).token)
        fleet.leases.release(1, fleet.claim(1).token, cause=Cause.DRAINED)
        fleet.commit(0, 0.5)
        known = {"drained": 3, "died": 1, "failed": 1}
        turn_until(service, lambda: handle.status().trials["complete"], "it is told")
        turn_until(service, lambda: handle.status().requeued == known, "all are counted")
        assert handle.status().losses == 1
        assert [each.number for each in handle.status().retried] == [1]
    with fleet.service() as service:
        fleet.commit(1, 0.25)
        turn_until(service, lambda: handle.status().is_over, "it is over")
    status = handle.status()
    assert (status.requeued, status.losses, status.retried) == (known, 1, [])


def test_of_a_trial_that_is_paused_at_a_rung_what_its_attempts_came_to_is_counted(fleet):
    promoting = {"type": "asha", "promote": True, "min_resource": 1, "max_resource": 4}
    handle = fleet.submit(trials=2, max_failures=9, direction="maximize", pruner=promoting)
    with fleet.service() as service:
        turn_until(service, lambda: len(fleet.leases.queued()) == 2, "they are in flight")
        die(fleet.leases, fleet.claim(0).token)
        token = fleet.claim(0).token
        assert fleet.leases.park(0, token, Pause(rung=0, step=1, value=0.5)) == "OK"
        turn_until(service, lambda: handle.status().trials["paused"], "it is paused")
        status = handle.status()
        assert (status.requeued, status.losses, status.retried) == ({"died": 1}, 1, [])


@pytest.mark.parametrize("text", ["", "no json", "[]", '{"died": "x", "failed": 2}', "[" * 10**5])
def test_counts_that_are_none_cost_no_trial_its_end(fleet, text):
    assert read_counts(text) == ({"failed": 2} if "failed" in text else {})
    fleet.submit(trials=1)
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "it is in flight")
        fleet.client.hset("fleet:{s}:trial:0", "requeued", text)
        release(fleet.leases, fleet.claim(0).token)
        fleet.commit(0, 0.5)
        turn_until(service, lambda: service.status("s").is_over, "it is over")
    assert fleet.stored()[0].values == [0.5]


def test_a_checkpoint_of_another_kind_than_is_asked_for_is_no_loss(tmp_path):
    ref = CheckpointRef(7, str(tmp_path), "")
    (tmp_path / "state.pt").touch()
    told = "the checkpoint of step 7 is not as it was saved"
    assert why_not_loaded(ref, is_files=True) is None
    assert why_not_loaded(ref, is_files=False) == told, "it was asked for, and not taken"
    (tmp_path / "state.pt").unlink()
    assert why_not_loaded(ref, is_files=True) == told
    away = ref._replace(uri=str(tmp_path / "elsewhere"))
    assert why_not_loaded(away, is_files=False).endswith("cannot be reached from here")


def test_an_attempt_that_cannot_reach_the_checkpoint_is_told_once_counted_and_explained(fleet):
    handle = fleet.submit(trials=1)
    with fleet.service() as service:
        turn_until(service, fleet.leases.queued, "it is in flight")
        token = fleet.claim(0).token
        reason = "the checkpoint of step 7 cannot be reached from here"
        assert fleet.leases.begin_anew(0, token, reason) == "OK"
        assert fleet.leases.begin_anew(0, token, reason) == "DUP"
        assert fleet.leases.begin_anew(0, token - 1, reason) == "LOST"
        turn_until(service, lambda: handle.status().began_anew == 1, "it is counted")
        fleet.leases.commit(0, token, TrialState.COMPLETE, Result(values=[0.5]))
        turn_until(service, lambda: handle.status().is_over, "it is over")
    assert handle.status().began_anew == 1
    history = EventHistory(
        EventFile(events_file(fleet.settings.home, "s")), EventStream(fleet.client, "s"), "s"
    )
    sentences = "\n".join(explain(life_of("s", 0, history.read())))
    assert f"it began anew: {reason}; have all workers share one FLEET_HOME" in sentences
