from __future__ import annotations

import pytest
import redis

from workers.coordination import keys
from workers.coordination import leases as leases_module
from workers.coordination.grants import Grant, Refusal
from workers.coordination.identity import ProcessIdentity
from workers.coordination.inbox import Inbox
from workers.coordination.leases import TrialLeases
from workers.coordination.studies import Studies, ensure_epoch
from workers.coordination.study_lead import StudyLead
from workers.coordination.trial_record import CheckpointRef
from workers.processes.registry import ProcessRegistry
from workers.protocol.errors import StudyTakenOverError
from workers.protocol.messages import Drawn, Result, Taken
from workers.protocol.spec import StudySpec
from workers.protocol.states import Charge, Command, TrialState

START_MS = 1_700_000_000_000
LEASE = 45.0


class Clock:
    """Trials of one study, seen at a time of the test's choosing."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.now_ms = START_MS
        self.epoch = ensure_epoch(client)

    @property
    def leases(self) -> TrialLeases:
        return TrialLeases(self.client, "s", self.epoch, now_ms=self.now_ms)

    def claimed(self, number: int = 0) -> Grant:
        self.leases.enqueue(number, {"x": 1.5})
        grant = self.leases.claim(number, "owner", LEASE)
        assert isinstance(grant, Grant)
        return grant

    def entries(self):
        inbox = Inbox(self.client, "test")
        return inbox.join("s") + [entry for _, entry in inbox.read(["s"], 10)]


@pytest.fixture
def clock(client):
    return Clock(client)


def test_a_trial_is_enqueued_once(clock):
    assert clock.leases.enqueue(0, {"x": 1})
    assert not clock.leases.enqueue(0, {"x": 2})
    assert clock.leases.record(0).params == {"x": 1}
    assert clock.leases.queued() == {0: START_MS}


@pytest.mark.parametrize("knows_the_scripts", [True, False])
def test_many_are_enqueued_and_settled_in_one_round_trip(clock, knows_the_scripts):
    clock.leases.enqueue(9, {"x": 9})
    clock.leases.settle(8, TrialState.FAILED)
    if not knows_the_scripts:
        clock.client.script_flush()
    clock.leases.enqueue_all({number: {"x": number} for number in (0, 1, 9)})
    assert {
        number: record.params for number, record in clock.leases.records([0, 1, 9]).items()
    } == {number: {"x": number} for number in (0, 1, 9)}
    if not knows_the_scripts:
        clock.client.script_flush()
    clock.leases.settle_all({0: TrialState.COMPLETE, 7: TrialState.FAILED, 1: TrialState.PRUNED})
    assert clock.leases.records([0, 1, 7, 9]).keys() == {0, 1, 9}
    assert clock.leases.record(1).state is TrialState.PRUNED
    assert clock.leases.queued().keys() == {9}


def test_a_claim_grants_a_token_and_the_parameters(clock):
    clock.leases.enqueue(0, {"x": 1.5, "name": "ä", "none": None})
    grant = clock.leases.claim(0, "owner", LEASE)
    assert isinstance(grant, Grant)
    assert grant.attempt == 1
    assert grant.deadline_ms == START_MS + 45_000
    assert grant.record.params == {"x": 1.5, "name": "ä", "none": None}
    assert clock.leases.running() == {0: START_MS + 45_000}
    assert clock.leases.queued() == {}


def test_the_same_nonce_gets_the_same_grant_and_another_is_told_to_wait(clock):
    clock.leases.enqueue(0, {})
    first = clock.leases.claim(0, "owner", LEASE, nonce="a")
    clock.now_ms += 1000
    assert clock.leases.claim(0, "owner", LEASE, nonce="a") == first
    assert clock.leases.claim(0, "other", LEASE, nonce="b") == Refusal("HELD", 44_000)


def test_what_is_not_there_or_has_ended_cannot_be_claimed(clock):
    assert clock.leases.claim(7, "owner", LEASE) == Refusal("UNKNOWN")
    grant = clock.claimed()
    clock.leases.commit(0, grant.token, TrialState.COMPLETE, Result(values=[1.0]))
    assert clock.leases.claim(0, "owner", LEASE) == Refusal("DONE")


def test_a_renewal_moves_the_deadline_and_notes_the_step(clock):
    grant = clock.claimed()
    clock.now_ms += 10_000
    assert clock.leases.renew(0, grant.token, LEASE, 17) is Command.NONE
    assert clock.leases.running() == {0: START_MS + 55_000}
    assert clock.leases.record(0).step == 17


def test_reports_are_told_in_the_order_of_their_calls_and_a_call_that_is_made_again_once(clock):
    grant = clock.claimed()
    assert clock.leases.report(0, grant.token, 5, 0.5) == "OK"
    assert clock.leases.report(0, grant.token, 5, 0.7) == "OLD"
    assert clock.leases.report(0, grant.token, 2, float("inf")) == "OK"
    record = clock.leases.record(0)
    assert (record.reported_step, record.reported_value) == (5, 0.5), "of the highest step"
    clock.leases.release(0, grant.token)
    again = clock.claimed()
    assert clock.leases.report(0, again.token, 2, 0.1) == "OK", "another attempt's is another call"
    reports = [(entry.subject, entry.payload) for entry in clock.entries()]
    assert reports == [("5", 0.5), ("2", float("inf")), ("2", 0.1)]


def test_reports_that_nobody_reads_have_an_end_and_what_trials_need_has_not(clock, monkeypatch):
    monkeypatch.setattr(leases_module, "MAX_ENTRIES_WITH_REPORTS", 3)
    leases, token = clock.leases, clock.claimed().token
    answers = [leases.report(0, token, step, 0.5) for step in range(5)]
    assert answers == ["OK", "OK", "OK", "FULL", "FULL"]
    assert leases.suggest(0, token, "a", "{}") == ["OK"]
    assert leases.suggest(0, token, "a", "{}") == ["OK"], "asked again, and told once"
    assert leases.suggest(0, token, "y", "{}") == ["OK"]
    assert leases.commit(0, token, TrialState.COMPLETE, Result(values=[1.0])) == "OK"
    read = clock.entries()
    assert [entry.kind for entry in read] == [*["report"] * 3, *["suggest"] * 2, "terminal"]


def test_a_question_that_was_read_and_not_answered_can_be_asked_again(clock):
    leases, token = clock.leases, clock.claimed().token
    leases.suggest(0, token, "a", "{}")
    inbox = Inbox(clock.client, "test")
    inbox.acknowledge("s", [entry.id for entry in clock.entries()])
    leases.suggest(0, token, "a", "{}")
    assert [entry.kind for entry in clock.entries()] == ["suggest"]


def test_the_record_of_a_failed_attempt_keeps_its_error_and_nothing_large(clock):
    leases, token = clock.leases, clock.claimed().token
    result = Result(error="boom", fingerprint="f", user_attrs={"a": "x" * 100_000})
    assert leases.fail(0, token, result, 3, 0.0) == "REQUEUED"
    record = leases.record(0)
    assert (record.error, record.error_fingerprint) == ("boom", "f")
    assert clock.client.memory_usage(keys.trial("s", 0)) < 4000
    grant = leases.claim(0, "owner", LEASE)
    assert leases.fail(0, grant.token, result, 2, 0.0) == "DEAD"
    (entry,) = clock.entries()
    assert entry.decode().result.user_attrs == result.user_attrs, "the last one is told whole"


def test_a_suggestion_is_asked_for_once_and_then_known(clock):
    grant = clock.claimed()
    assert clock.leases.suggest(0, grant.token, "x", "{}") == ["VALUE", "1.5", ""]
    assert clock.leases.suggest(0, grant.token, "y", '{"name": "d"}') == ["OK"]
    (entry,) = clock.entries()
    assert (entry.kind, entry.subject, entry.token) == ("suggest", "y", grant.token)
    answer = {"request": "suggest:y", "value": 3}
    assert clock.leases.reply(0, grant.token, answer, param=("y", 3))
    assert clock.leases.await_reply(0, grant.token, 1.0) == answer
    assert clock.leases.suggest(0, grant.token, "y", "{}") == ["VALUE", "3", ""]


def test_what_was_drawn_before_is_told_once_when_it_is_used_and_then_the_trials_own(clock):
    drawn = {name: Drawn(distribution="{}", value=2.5, is_joint=True) for name in ("a", "b")}
    clock.leases.enqueue(0, {"x": 1.5}, drawn=drawn)
    grant = clock.leases.claim(0, "owner", LEASE)
    assert (grant.record.params, grant.record.drawn) == ({"x": 1.5}, drawn)
    used = {"a": drawn["a"]}
    assert clock.leases.take(0, grant.token, used)
    assert clock.leases.take(0, grant.token, used), "the answer to the first call was lost"
    (entry,) = clock.entries()
    assert entry.decode() == Taken(params=used)
    assert clock.leases.record(0).params == {"x": 1.5, "a": 2.5}


def test_a_holder_learns_of_a_command_when_it_renews(clock):
    grant = clock.claimed()
    clock.leases.reply(0, grant.token, {"request": "r"}, command=Command.CANCEL)
    assert clock.leases.renew(0, grant.token, LEASE, 0) is Command.CANCEL


def test_what_only_a_newer_release_asks_of_a_holder_asks_nothing_of_this_one(clock):
    grant = clock.claimed()
    clock.client.hset(keys.trial("s", 0), "command", "DO_SOMETHING_NEW")
    assert clock.leases.renew(0, grant.token, LEASE, 0) is Command.NONE


def test_the_checkpoint_pointer_only_moves_forward(clock):
    grant = clock.claimed()
    assert clock.leases.checkpoint(0, grant.token, CheckpointRef(10, "/a", "aa")) == "OK"
    assert clock.leases.checkpoint(0, grant.token, CheckpointRef(10, "/b", "bb")) == "OLD"
    assert clock.leases.checkpoint(0, grant.token, CheckpointRef(9, "/c", "cc")) == "OLD"
    clock.leases.release(0, grant.token)
    second = clock.leases.claim(0, "owner", LEASE)
    assert second.record.checkpoint == CheckpointRef(10, "/a", "aa")


def test_the_pointer_moves_back_from_what_could_not_be_loaded_and_from_nothing_else(clock):
    token = clock.claimed().token
    lost, other = CheckpointRef(1000, "/lost", "a"), CheckpointRef(600, "/b", "b")
    assert clock.leases.checkpoint(0, token, lost) == "OK"
    assert clock.leases.checkpoint(0, token, other, "/another") == "OLD"
    assert clock.leases.checkpoint(0, token, other, "/lost") == "OK"
    assert clock.leases.checkpoint(0, token, other, "/lost") == "OLD", "it was sent again"
    assert clock.leases.checkpoint(0, token, CheckpointRef(500, "/c", "c"), "/lost") == "OLD"
    assert clock.leases.checkpoint(0, token, CheckpointRef(700, "/d", "d"), "/lost") == "OK"
    assert clock.leases.record(0).checkpoint.step == 700


def test_the_first_commit_wins_and_its_retry_is_known(clock):
    grant = clock.claimed()
    result = Result(values=[0.7], user_attrs={"k": [1]}, busy_seconds=2.0)
    assert clock.leases.commit(0, grant.token, TrialState.COMPLETE, result) == "OK"
    assert clock.leases.commit(0, grant.token, TrialState.COMPLETE, result) == "DUP"
    (entry,) = clock.entries()
    assert (entry.kind, entry.subject, entry.attempt) == ("terminal", "COMPLETE", 1)
    assert Result.model_validate(entry.payload) == result
    assert clock.leases.running() == {}


def test_a_release_is_no_failure(clock):
    grant = clock.claimed()
    assert clock.leases.release(0, grant.token)
    record = clock.leases.record(0)
    assert (record.state, record.failures, record.attempt) == (TrialState.QUEUED, 0, 1)
    assert clock.leases.claim(0, "owner", LEASE).attempt == 2


def test_a_trial_counts_how_long_its_attempts_held_slots_and_which_of_these_had_a_gpu(clock):
    clock.leases.enqueue(0, {})

    def attempt(device, seconds, end):
        grant = clock.leases.claim(0, "owner", LEASE, device=device, insists=True)
        clock.now_ms += int(seconds * 1000)
        for _ in range(2):  # an answer that was lost makes no attempt count twice
            end(grant)
        return clock.leases.record(0)

    lost = {"most": 9, "backoff_seconds": 0.0}
    attempt("box/7/cpu-0", 5, lambda grant: clock.leases.release(0, grant.token))
    failed = Result(error="boom")
    attempt("box/GPU-1", 7, lambda grant: clock.leases.fail(0, grant.token, failed, 9, 0.0))
    record = attempt(
        "box/MIG-2", 2, lambda grant: clock.leases.reap(0, "gone", dead_token=grant.token, **lost)
    )
    assert (record.held_ms, record.gpu_ms) == (14_000, 9_000)
    # nobody looked for an hour: the lease had ended long before
    late = attempt("", LEASE + 3600, lambda _: clock.leases.reap(0, "gone", **lost))
    assert late.held_ms == 14_000 + LEASE * 1000
    attempt("", 1, lambda grant: clock.leases.commit(0, grant.token, TrialState.COMPLETE, Result()))
    (entry,) = clock.entries()
    assert (entry.held_ms, entry.gpu_ms) == (15_000 + LEASE * 1000, 9_000)


def test_failures_wait_twice_as_long_each_time_and_end_in_dead(clock):
    clock.leases.enqueue(0, {})
    for failures, wait_ms in ((1, 2000), (2, 4000)):
        grant = clock.leases.claim(0, "owner", LEASE)
        assert clock.leases.fail(0, grant.token, Result(error="boom"), 3, 2.0) == "REQUEUED"
        assert clock.leases.claim(0, "owner", LEASE) == Refusal("NOT_YET", wait_ms)
        assert clock.leases.record(0).failures == failures
        clock.now_ms += wait_ms
    grant = clock.leases.claim(0, "owner", LEASE)
    assert clock.leases.fail(0, grant.token, Result(error="boom"), 3, 2.0) == "DEAD"
    (entry,) = clock.entries()
    assert (entry.subject, entry.payload["error"]) == ("DEAD", "boom")
    assert clock.leases.record(0).error == "boom"


def test_losses_and_failures_are_counted_apart_each_up_to_its_own_limit(clock):
    clock.leases.enqueue(0, {})

    def end(charge, most):
        grant = clock.leases.claim(0, "owner", LEASE)
        return clock.leases.fail(0, grant.token, Result(error=charge), most, 0.0, charge)

    for _ in range(2):
        assert end(Charge.FAILURE, 3) == "REQUEUED"
    for _ in range(4):
        assert end(Charge.LOSS, 5) == "REQUEUED"
    record = clock.leases.record(0)
    assert (record.failures, record.losses) == (2, 4)
    assert end(Charge.LOSS, 5) == "DEAD"
    (entry,) = clock.entries()
    assert (entry.subject, entry.losses, entry.payload["is_loss"]) == ("DEAD", 5, True)


def test_what_is_given_back_is_counted_nowhere_and_waits_longer_each_time(clock):
    clock.leases.enqueue(0, {})
    for wait_ms in (2000, 4000, 8000):
        grant = clock.leases.claim(0, "owner", LEASE)
        assert clock.leases.release(0, grant.token, 2.0)
        assert clock.leases.claim(0, "owner", LEASE) == Refusal("NOT_YET", wait_ms)
        clock.now_ms += wait_ms
    record = clock.leases.record(0)
    assert (record.failures, record.losses) == (0, 0)


def test_a_record_of_the_release_before_counts_on(clock):
    clock.leases.enqueue(0, {})
    clock.client.hdel(keys.trial(clock.leases.study, 0), "losses")
    clock.client.hset(keys.trial(clock.leases.study, 0), "failures", 2)
    grant = clock.leases.claim(0, "owner", LEASE)
    assert (grant.record.failures, grant.record.losses) == (2, 0)
    assert reap(clock.leases, dead_token=grant.token) == "REQUEUED"
    record = clock.leases.record(0)
    assert (record.failures, record.losses) == (2, 1)
    assert clock.leases.pause_seconds(0) == 8


def test_the_pause_after_a_failure_has_an_end(clock):
    clock.leases.enqueue(0, {})
    pauses = []
    for number in range(10):
        grant = clock.leases.claim(0, "owner", LEASE)
        if number % 2:
            clock.leases.fail(0, grant.token, Result(error="boom"), 1000, 2.0)
        else:
            clock.leases.reap(0, "gone", most=1000, backoff_seconds=2.0, dead_token=grant.token)
        pauses.append(clock.leases.pause_seconds(0))
        assert clock.leases.claim(0, "owner", LEASE) == Refusal("NOT_YET", int(pauses[-1] * 1000))
        clock.now_ms += int(pauses[-1] * 1000)
    assert pauses == [2, 4, 8, 16, 32, 64, 128, 128, 128, 128]
    assert clock.leases.pause_seconds(0) == 0


def reap(leases, **options):
    return leases.reap(0, "gone", most=3, backoff_seconds=2.0, **options)


def test_a_lease_is_reaped_only_after_its_end_and_the_grace(clock):
    clock.claimed()
    clock.now_ms += 45_000 + 4_999
    assert reap(clock.leases, grace_seconds=5.0) == "LIVE"
    clock.now_ms += 1
    assert reap(clock.leases, grace_seconds=5.0) == "REQUEUED"
    assert reap(clock.leases, grace_seconds=5.0) == "SKIP"
    record = clock.leases.record(0)
    assert (record.failures, record.losses) == (0, 1)


def test_a_dead_token_is_reaped_at_once_and_a_newer_one_is_not(clock):
    first = clock.claimed()
    assert reap(clock.leases, dead_token=first.token) == "REQUEUED"
    clock.now_ms += 2000
    second = clock.leases.claim(0, "owner", LEASE)
    assert reap(clock.leases, dead_token=first.token) == "SKIP"
    assert clock.leases.record(0).token == second.token


def test_settling_ends_what_the_storage_knows_as_ended(clock):
    clock.claimed()
    assert clock.leases.settle(0, TrialState.COMPLETE)
    assert clock.leases.record(0).state is TrialState.COMPLETE
    assert clock.leases.running() == {}
    assert clock.client.pttl(keys.trial("s", 0)) > 0
    assert not clock.leases.settle(9, TrialState.COMPLETE)


OLD_TOKEN_CALLS = {
    "renew": (lambda leases, token: leases.renew(0, token, LEASE, 5), None),
    "report": (lambda leases, token: leases.report(0, token, 9, 1.0), "LOST"),
    "suggest": (lambda leases, token: leases.suggest(0, token, "z", "{}"), ["LOST"]),
    "take": (
        lambda leases, token: leases.take(0, token, {"z": Drawn(distribution="{}", value=1)}),
        False,
    ),
    "reply": (lambda leases, token: leases.reply(0, token, {"request": "r"}), False),
    "checkpoint": (
        lambda leases, token: leases.checkpoint(0, token, CheckpointRef(99, "/x", "x")),
        "LOST",
    ),
    "commit": (
        lambda leases, token: leases.commit(0, token, TrialState.COMPLETE, Result(values=[1.0])),
        "LOST",
    ),
    "release": (lambda leases, token: leases.release(0, token), False),
    "fail": (lambda leases, token: leases.fail(0, token, Result(error="e"), 1, 0.0), "LOST"),
    "reap": (lambda leases, token: reap(leases, dead_token=token), "SKIP"),
}


@pytest.mark.parametrize("verb", OLD_TOKEN_CALLS)
def test_an_old_token_changes_nothing(clock, verb):
    old = clock.claimed()
    clock.leases.release(0, old.token)
    clock.leases.claim(0, "owner", LEASE)
    before = snapshot(clock.client)
    call, refused = OLD_TOKEN_CALLS[verb]
    assert call(clock.leases, old.token) == refused
    assert snapshot(clock.client) == before


@pytest.mark.parametrize("verb", OLD_TOKEN_CALLS)
def test_a_token_of_another_epoch_changes_nothing(clock, verb):
    grant = clock.claimed()
    clock.client.set(keys.EPOCH, "new")
    before = snapshot(clock.client)
    call, refused = OLD_TOKEN_CALLS[verb]
    assert call(clock.leases, grant.token) == refused
    assert snapshot(clock.client) == before


@pytest.mark.parametrize("lead", [None, "another"])
def test_an_orchestrator_whose_lead_ran_out_writes_nothing(clock, lead):
    studies = Studies(clock.client, "one")
    studies.submit(StudySpec(name="s"))
    grant = clock.claimed()
    leases = TrialLeases(clock.client, "s", clock.epoch, leader="one")
    calls = [
        lambda: leases.enqueue(1, {}),
        lambda: leases.enqueue_all({0: {}, 1: {}}),
        lambda: leases.reply(0, grant.token, {"request": "r"}),
        lambda: leases.settle(0, TrialState.FAILED),
        lambda: leases.settle_all({0: TrialState.FAILED}),
        lambda: leases.unpark(0, 1),
        lambda: studies.facts.publish("s", {"best_value": 0.5}),
        lambda: studies.begin("s", "generation", "place"),
        lambda: studies.orders.drop("s", ["id"], "1"),
    ]
    if lead is not None:
        clock.client.set(keys.lead("s"), lead)
    before = snapshot(clock.client)
    for call in calls:
        with pytest.raises(StudyTakenOverError, match="the right to drive it ran out here"):
            call()
    assert snapshot(clock.client) == before
    clock.client.set(keys.lead("s"), "one")
    for call in calls:
        call()
    assert clock.leases.record(1).state is TrialState.QUEUED


def test_a_lead_that_ran_out_is_not_kept_but_may_be_had_again(client):
    lead = StudyLead(client, "s", ProcessIdentity.current(), LEASE)
    assert not lead.hold(only_stay=True)
    assert lead.hold()
    assert lead.hold(only_stay=True)


def snapshot(client):
    return {key: client.dump(key) for key in client.keys("fleet:{s}:*")}


def test_tokens_rise_even_when_redis_forgets_the_last_ones(clock, server):
    first = clock.claimed()
    clock.leases.release(0, first.token)
    rolled_back = dump(server.url)
    clock.now_ms += 1
    second = clock.leases.claim(0, "owner", LEASE)
    for key, value in rolled_back.items():
        clock.client.delete(key)
        clock.client.restore(key, 0, value)
    clock.now_ms += 1
    third = clock.leases.claim(0, "owner", LEASE)
    assert first.token < second.token < third.token


def dump(url):
    raw = redis.Redis.from_url(url)
    dumped = {key.decode(): raw.dump(key) for key in raw.keys("fleet:{s}:*")}
    raw.close()
    return dumped


def test_tokens_rise_even_when_the_clock_stands_still(clock):
    first = clock.claimed()
    clock.leases.release(0, first.token)
    second = clock.leases.claim(0, "owner", LEASE)
    assert second.token == first.token + 1


def test_a_claim_under_a_specification_that_the_study_has_no_more_is_refused(client):
    studies = Studies(client)
    studies.submit(StudySpec(name="s"))
    leases = studies.leases("s")
    leases.enqueue(0, {})
    known, sha1 = studies.spec_and_sha1("s")
    studies.change_spec("s", lambda spec: spec.model_copy(update={"trials": known.trials + 1}))
    assert leases.claim(0, "owner", LEASE, spec_sha1=sha1) == Refusal("RESPEC")
    assert leases.record(0).attempt == 0
    now, sha1 = studies.spec_and_sha1("s")
    assert now.trials == known.trials + 1
    granted = leases.claim(0, "owner", LEASE, "nonce", spec_sha1=sha1)
    assert isinstance(granted, Grant)
    studies.change_spec("s", lambda spec: spec.model_copy(update={"trials": known.trials + 2}))
    again = leases.claim(0, "owner", LEASE, "nonce", spec_sha1=sha1)
    assert again == granted, "its answer was lost, and the client sent it again"
    assert leases.claim(0, "other", LEASE, "another", spec_sha1=sha1) == Refusal("RESPEC")


def test_a_processs_record_names_its_trial_from_the_grant_on_and_not_after_the_commit(
    client, settings
):
    studies = Studies(client)
    studies.submit(StudySpec(name="s"))
    leases, registry = studies.leases("s"), ProcessRegistry(client, settings.times)
    me = ProcessIdentity.current()

    def claim(number: int) -> Grant:
        leases.enqueue(number, {})
        grant = leases.claim(number, str(me), LEASE, is_assigned=True)
        assert isinstance(grant, Grant)
        return grant

    assert not claim(0).is_noted, "there is no record yet: its owner is to write one"
    assert registry.find(me) is None
    registry.register(me, {"kind": "trial", "activity": "rows read"})
    grant = claim(1)
    assert grant.is_noted
    found = registry.find(me)
    assert (found.study, found.trial, found.token, found.activity) == ("s", 1, grant.token, None)
    result = Result(values=[1.0])
    assert leases.commit(1, grant.token, TrialState.COMPLETE, result, freed=me) == "OK"
    found = registry.find(me)
    assert (found.study, found.trial, found.token) == (None, None, None)
    grant = claim(2)
    assert leases.commit(2, grant.token + 1, TrialState.COMPLETE, result, freed=me) == "LOST"
    assert registry.find(me).trial == 2
    client.hset(keys.process(me), "epoch", '"earlier"')
    assert not claim(3).is_noted, "what an earlier Redis held of it is not to be built upon"
