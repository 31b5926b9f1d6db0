"""The protocol's scripts on a real server, held against the model, along walks of many steps.

Invariants by their numbers: I1 membership, I2 rising tokens, I3 old tokens change nothing, I4 one
end, I5 ends absorb, I6 bounded failures, I7 checkpoints never fall, I8 twice is once, I9 and I10
messages and crashes (here: reap, reconcile and rollbacks at any point), I11 all ends when faults
stop, I12 the holder's clock runs out first.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter, deque
from copy import deepcopy
from dataclasses import dataclass, replace

import pytest
import redis
from trial_model import TERMINAL, Entry, Model, Trial

from workers.coordination import keys, scripts
from workers.coordination.grants import Grant
from workers.coordination.leases import TrialLeases
from workers.coordination.trial_record import CheckpointRef
from workers.protocol.events import Event, EventKind, decode, line_of
from workers.protocol.messages import Pause, Result
from workers.protocol.states import Charge, TrialState
from workers.times import Times

STUDY = "s"
START_MS = 1_700_000_000_000
TTL_MS, HOLDER_MS, GRACE_MS = (
    int(1000 * seconds) for seconds in (Times().lease, Times().holder, Times().grace)
)
BACKOFF_MS = 2000
MAX_FAILURES, MAX_LOSSES = 2, 3
MOST = {Charge.FAILURE: MAX_FAILURES, Charge.LOSS: MAX_LOSSES}
STEPS_IN_CI = 25_000


@dataclass(frozen=True)
class Call:
    """One call of a verb, so that it can be made twice."""

    verb: str
    number: int
    epoch: str
    token: int | None = None
    value: str = ""
    replaces: tuple[int, int] | None = None
    """Of a checkpoint: the token and the step of the one that could not be loaded."""


#: Answers after which all is as it was.
REFUSALS = {
    "LOST", "SKIP", "LIVE", "HELD", "NOT_YET", "PAUSED", "DONE", "UNKNOWN", "OLD", "EXISTS", "DUP",
    "EPOCH",
}  # fmt: skip


def on_server(call: Call, leases: TrialLeases) -> tuple[str, Grant | None]:
    """Make a call; its status word, and the grant if there is one."""
    number, token, value, backoff = call.number, call.token or 0, call.value, BACKOFF_MS / 1000
    if call.verb == "claim":
        answer = leases.claim(number, f"owner-{value}", TTL_MS / 1000, value)
        return ("OK", answer) if isinstance(answer, Grant) else (answer.reason, None)
    made = {
        "enqueue": lambda: "OK" if leases.enqueue(number, {"x": 1}) else "EXISTS",
        "renew": lambda: "OK" if leases.renew(number, token, TTL_MS / 1000, 0) else "LOST",
        "report": lambda: leases.report(number, token, int(value), 0.5),
        "checkpoint": lambda: leases.checkpoint(
            number,
            token,
            CheckpointRef(int(value), f"/{token}/{value}", "sum"),
            "/{}/{}".format(*call.replaces) if call.replaces else "",
        ),
        "commit": lambda: leases.commit(number, token, TrialState(value), Result(values=[1.0])),
        "release": lambda: (
            "OK" if leases.release(number, token, backoff if value else 0.0) else "LOST"
        ),
        "fail": lambda: leases.fail(
            number, token, Result(error="e"), MOST[Charge(value)], backoff, Charge(value)
        ),
        "reap": lambda: leases.reap(
            number,
            "gone",
            most=MAX_LOSSES,
            backoff_seconds=backoff,
            grace_seconds=GRACE_MS / 1000,
            dead_token=call.token,
        ),
        "park": lambda: leases.park(number, token, Pause(rung=int(value), step=1, value=0.5)),
        "unpark": lambda: leases.unpark(number, int(value)),
        "settle": lambda: "OK" if leases.settle(number, TrialState(value)) else "SKIP",
    }
    return made[call.verb](), None


def in_model(call: Call, model: Model, drawn: int) -> tuple[str, Model]:
    """What a call must answer and change; `drawn` is the token that the server drew, if any."""
    number, epoch, token, value = call.number, call.epoch, call.token or 0, call.value
    made = {
        "enqueue": lambda: model.enqueue(number, epoch),
        "claim": lambda: model.claim(number, epoch, value, TTL_MS, drawn),
        "renew": lambda: model.renew(number, epoch, token, TTL_MS),
        "report": lambda: model.report(number, epoch, token, int(value)),
        "checkpoint": lambda: model.checkpoint(number, epoch, token, int(value), call.replaces),
        "commit": lambda: model.commit(number, epoch, token, value),
        "release": lambda: model.release(number, epoch, token, BACKOFF_MS if value else 0),
        "fail": lambda: model.fail(number, epoch, token, value, MOST[Charge(value)], BACKOFF_MS),
        "reap": lambda: model.reap(
            number, epoch, call.token, GRACE_MS, "losses", MAX_LOSSES, BACKOFF_MS
        ),
        "park": lambda: model.park(number, epoch, token, int(value)),
        "unpark": lambda: model.unpark(number, epoch, int(value)),
        "settle": lambda: model.settle(number, epoch, value),
    }
    return made[call.verb]()


def read_event(found: object) -> Event:
    ((event_id, fields),) = found
    event = decode(line_of(event_id, fields["event"]))
    assert event is not None, f"no event: {fields}"
    return event


def told_by(was: Trial | None, now: Trial) -> EventKind:
    """The event of a trial that got from one state to another."""
    if now.state == "QUEUED":
        if was is None:
            return EventKind.ASKED
        return EventKind.PROMOTED if was.state == "PAUSED" else EventKind.REQUEUED
    if now.state == "PAUSED":
        return EventKind.PAUSED
    return EventKind.CLAIMED if now.state == "RUNNING" else EventKind.ENDED


#: All that the server holds of a study, in one answer: a walk asks for it after each call.
LOOK = """
local found = {}
for index = 1, 3 do
  found[index] = redis.call('ZRANGE', KEYS[index], 0, -1, 'WITHSCORES')
end
found[4] = redis.call('XRANGE', KEYS[4], '-', '+')
found[5] = redis.call('XREVRANGE', KEYS[5], '+', '-', 'COUNT', 1)
found[6] = {}
for index = 6, #KEYS do
  found[6][index - 5] = redis.call('HGETALL', KEYS[index])
end
return found
"""


def pairs(flat: list[str]) -> dict[str, str]:
    """Names and values that the server gives one after the other."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


class Bench:
    """One study on the server, and the model that it must agree with."""

    def __init__(self, client: redis.Redis, binary: redis.Redis | None = None) -> None:
        self.client = client
        #: the same server, undecoded, for dumps
        self.binary = binary
        self.model = Model(START_MS, "epoch-1")
        #: all tokens that a trial was ever granted, in order, over rollbacks and epochs too
        self.granted: dict[int, list[int]] = {}
        #: when the holder of a trial's token sent its last good renewal, ms
        self.sent_at: dict[tuple[int, int], int] = {}
        #: what the server held after the last call; nobody else changes it
        self._held: dict[str, object] | None = None
        self._look = client.register_script(LOOK)
        client.flushall()
        client.set(keys.EPOCH, self.model.epoch)

    def leases(self, epoch: str) -> TrialLeases:
        return TrialLeases(self.client, STUDY, epoch, now_ms=self.model.now)

    def make(self, call: Call) -> str:
        """Make a call on the server and in the model; check that they agree, and all invariants."""
        before = self.model
        raw_before = self.raw() if self._held is None else self._held
        status, grant = on_server(call, self.leases(call.epoch))
        expected, self.model = in_model(call, self.model, 0 if grant is None else grant.token)
        assert status == expected, f"{call}: {status}, and the model says {expected}"
        raw = self._held = self.raw()
        trials, inbox = self.read(raw)
        assert (trials, inbox) == (self.model.trials, self.model.inbox), f"{call}: {raw}"
        if status in REFUSALS:
            assert raw == raw_before, f"I3/I8: {call} answered {status} and changed something"
        self._check_membership(raw, trials, inbox)
        self._check_history(call, before, status)
        self._check_event(call, before, raw_before["event"], raw["event"])
        if grant is not None:
            self._check_grant(call, before, grant)
        if call.verb == "renew" and status == "OK":
            self._note_sent(call.number, call.token)
        return status

    def raw(self) -> dict[str, object]:
        """All that the server holds of the study."""
        numbers = sorted(self.granted.keys() | self.model.trials.keys())
        *scores, inbox, event, records = self._look(
            keys=[of(STUDY) for of in (keys.leases, keys.queued, keys.paused)]
            + [keys.inbox(STUDY), keys.events(STUDY)]
            + [keys.trial(STUDY, number) for number in numbers]
        )
        leases, queued, paused = (
            {int(number): int(score) for number, score in pairs(flat).items()} for flat in scores
        )
        return {
            "leases": leases,
            "queued": queued,
            "paused": paused,
            "inbox": [(entry_id, pairs(flat)) for entry_id, flat in inbox],
            "event": [(entry_id, pairs(flat)) for entry_id, flat in event],
            "records": {
                number: pairs(flat) for number, flat in zip(numbers, records, strict=True) if flat
            },
        }

    @staticmethod
    def read(raw: dict[str, object]) -> tuple[dict[int, Trial], tuple[Entry, ...]]:
        """What the server holds, in the model's terms."""

        def number(fields, name):
            return int(fields[name]) if name in fields else None

        trials = {
            key: Trial(
                state=fields["state"],
                token=int(fields["token"]),
                attempt=int(fields["attempt"]),
                failures=int(fields["failures"]),
                losses=int(fields["losses"]),
                returns=int(fields.get("returns", 0)),
                not_before=int(fields["not_before"]),
                deadline=number(fields, "deadline"),
                nonce=fields.get("nonce"),
                checkpoint=number(fields, "checkpoint_step"),
                checkpoint_token=(
                    int(fields["checkpoint"].split("/")[1]) if "checkpoint" in fields else None
                ),
                rung=int(fields["rung"]),
                reported=fields.get("reported"),
                result_token=number(fields, "result_token"),
            )
            for key, fields in raw["records"].items()
        }
        inbox = tuple(
            Entry(entry["kind"], int(entry["number"]), int(entry["token"]), entry["subject"])
            for _, entry in raw["inbox"]
        )
        return trials, inbox

    @staticmethod
    def _check_membership(
        raw: dict[str, object], trials: dict[int, Trial], inbox: tuple[Entry, ...]
    ) -> None:
        running = {key: trial.deadline for key, trial in trials.items() if trial.state == "RUNNING"}
        queued = {key for key, trial in trials.items() if trial.state == "QUEUED"}
        assert raw["leases"] == running, "I1: RUNNING iff in leases, with its deadline"
        assert set(raw["queued"]) == queued, "I1: QUEUED iff in queued"
        paused = {key for key, trial in trials.items() if trial.state == "PAUSED"}
        assert set(raw["paused"]) == paused, "I1: PAUSED iff in paused"
        ends = Counter(entry.number for entry in inbox if entry.kind == "terminal")
        assert all(count == 1 for count in ends.values()), f"I4: {ends}"
        assert all(trial.failures <= MAX_FAILURES for trial in trials.values()), "I6"
        assert all(trial.losses <= MAX_LOSSES for trial in trials.values()), "I6"

    def _check_history(self, call: Call, before: Model, status: str) -> None:
        for number, earlier in before.trials.items():
            now = self.model.trials[number]
            if earlier.state in TERMINAL:
                assert now.state == earlier.state, f"I5: {call} left {earlier.state}"
            is_replaced = call.replaces == (earlier.checkpoint_token, earlier.checkpoint)
            if number != call.number or not is_replaced:
                assert (now.checkpoint or -1) >= (earlier.checkpoint or -1), f"I7: {call}"
            drained = call.verb in {"release", "park", "unpark"} and number == call.number
            counts = (now.failures, now.losses), (earlier.failures, earlier.losses)
            assert not drained or counts[0] == counts[1], "I6: a drain, and a pause, is free"
        if call.verb == "reap" and call.token is None and status in {"REQUEUED", "DEAD"}:
            holder = before.trials[call.number].token
            silent_from = self.sent_at[call.number, holder] + HOLDER_MS
            assert silent_from + GRACE_MS <= before.now, "I12: reaped while it might still write"

    def _check_event(self, call: Call, before: Model, earlier: object, latest: object) -> None:
        was, now = before.trials.get(call.number), self.model.trials.get(call.number)
        if now is None or (
            was is not None and (was.state, was.attempt) == (now.state, now.attempt)
        ):
            told = {read_event(latest).kind} if latest != earlier else set()
            assert told <= {EventKind.REPORTED, EventKind.CHECKPOINT}, f"{call} told {told}"
            return
        assert latest != earlier, f"{call} told nothing"
        event = read_event(latest)
        assert event.kind == told_by(was, now), f"{call}: {event}"
        assert (event.trial, event.attempt or 0) == (call.number, now.attempt), f"{call}: {event}"
        assert event.kind != "claimed" or event.token == now.token, f"{call}: {event}"
        assert event.kind != "ended" or event.state == now.state, f"{call}: {event}"

    def _check_grant(self, call: Call, before: Model, grant: Grant) -> None:
        trial, token = before.trials[call.number], grant.token
        ref = grant.record.checkpoint
        assert (None if ref is None else ref.step) == trial.checkpoint, (
            "I7: a claim resumes from the last accepted one"
        )
        if trial.state == "RUNNING":
            assert token == trial.token, "I8: the same nonce gets the same grant"
            return
        earlier = self.granted.setdefault(call.number, [])
        assert all(token > other for other in earlier), f"I2: {token} after {earlier[-3:]}"
        earlier.append(token)
        self._note_sent(call.number, token)

    def _note_sent(self, number: int, token: int) -> None:
        self.sent_at[number, token] = self.model.now
        assert self.sent_at[number, token] + HOLDER_MS < self.model.trials[number].deadline, "I12"

    def tick(self, ms: int) -> None:
        self.model = replace(self.model, now=self.model.now + ms)

    def changed(self) -> None:
        """What the server holds was changed by other means than a call."""
        self._held = None

    def lose_all(self) -> None:
        """FLUSHALL, seen by an orchestrator that draws a new epoch."""
        self.changed()
        self.tick(1)  # nobody loses and grants all within a millisecond
        self.client.flushall()
        epoch = f"epoch-{int(self.model.epoch.removeprefix('epoch-')) + 1}"
        self.client.set(keys.EPOCH, epoch)
        self.model = Model(self.model.now, epoch)

    def acknowledge(self) -> list[Entry]:
        """Take all entries out of the inbox."""
        entries = list(self.model.inbox)
        self.changed()
        self.client.xtrim(keys.inbox(STUDY), maxlen=0, approximate=False)
        self.model = replace(self.model, inbox=())
        return entries


class Snapshot:
    """All that Redis held at some moment: what an append-only file with a lost tail brings back."""

    def __init__(self, bench: Bench) -> None:
        self.model = bench.model
        keyspace = bench.client.keys(f"fleet:{{{STUDY}}}:*")
        self._dumps = {key: bench.binary.dump(key) for key in keyspace}

    def restore(self, bench: Bench) -> None:
        bench.changed()
        pipeline = bench.binary.pipeline()
        for key in bench.client.keys(f"fleet:{{{STUDY}}}:*"):
            pipeline.delete(key)
        for key, dump in self._dumps.items():
            pipeline.restore(key, 0, dump)
        pipeline.execute()
        bench.model = replace(self.model, now=bench.model.now)


class RandomWalk:
    """Holders, zombies, reapers and orchestrators that act in any order, with faults between."""

    def __init__(self, client: redis.Redis, binary: redis.Redis, seed: int) -> None:
        self.client, self.binary = client, binary
        self.random = random.Random(seed)
        self.steps = 0
        self.seen: Counter[str] = Counter()
        self._begin()

    def _begin(self) -> None:
        self.bench = Bench(self.client, self.binary)
        self.snapshots: list[Snapshot] = []
        self.nonce = 0
        #: number -> (state, token): what Optuna was told; set once, never rolled back
        self.storage: dict[int, tuple[str, int]] = {}
        #: until when the reaper waits, ms: what the server forgot, live holders renew meanwhile
        self.quiet_until = 0

    def run(self, steps: int) -> None:
        while self.steps < steps:
            for _ in range(self.random.randint(50, 250)):
                self.step()
            self.finish()
            self._begin()

    def step(self) -> None:
        draw = self.random.random()
        if draw < 0.80:
            call = self.choose()
            status = self.make(call)
            self.seen[f"{call.verb} {status}"] += 1
            if self.random.random() < 0.3:  # the reply was lost, and the client sent it again
                before = self.bench.model
                self.make(call)
                assert self.bench.model == before, f"I8: {call} made twice"
        elif draw < 0.90:
            self.bench.tick(self.random.choice([1, 500, 2500, 10_000, 30_000, 60_000]))
        elif draw < 0.95:
            self.collect(acknowledged=self.random.random() < 0.7)
        elif draw < 0.97:
            self.snapshots.append(Snapshot(self.bench))
        elif draw < 0.99:
            self.roll_back()
        else:
            self.bench.lose_all()
            self.snapshots.clear()
            self.seen["lost all"] += 1

    def make(self, call: Call) -> str:
        self.steps += 1
        return self.bench.make(call)

    def choose(self) -> Call:
        """Somebody's next call: mostly a sensible one, often a late one."""
        bench, pick = self.bench, self.random
        number = pick.randrange(4)
        trial = bench.model.trials.get(number)
        tokens = bench.granted.get(number, []) or [7]
        token = tokens[-1] if pick.random() < 0.7 else pick.choice(tokens)
        epoch = bench.model.epoch if pick.random() < 0.94 else "epoch-0"
        verbs = {
            "enqueue": 8 if trial is None else 1,
            "claim": 8 if trial is not None and trial.state == "QUEUED" else 2,
            "renew": 4, "report": 4, "checkpoint": 4, "commit": 2, "release": 2, "fail": 3,
            "reap": 8, "settle": 1 if number in self.storage else 0,
            "park": 1, "unpark": 6 if trial is not None and trial.state == "PAUSED" else 1,
        }  # fmt: skip
        verb = pick.choices(list(verbs), list(verbs.values()))[0]
        if verb == "claim":
            self.nonce += pick.random() < 0.7
            return Call(verb, number, epoch, value=f"nonce-{self.nonce}")
        if verb == "enqueue":
            return Call(verb, number, epoch)
        if verb == "reap":
            knows_it_dead = pick.random() < 0.3 or bench.model.now < self.quiet_until
            return Call(verb, number, epoch, token if knows_it_dead else None)
        if verb == "settle":
            return Call(verb, number, epoch, value=self.storage[number][0])
        if verb == "unpark":
            return Call(verb, number, epoch, value=str(pick.randrange(4)))
        values = {
            "report": str(pick.randrange(5)),
            "checkpoint": str(pick.randrange(5)),
            "commit": pick.choice(["COMPLETE", "PRUNED", "FAILED"]),
            "fail": pick.choice(list(Charge)).value,
            "release": pick.choice(["", "later"]),
            "park": str(pick.randrange(3)),
        }
        last = trial and trial.checkpoint_token and (trial.checkpoint_token, trial.checkpoint)
        replaces = (last or None) if verb == "checkpoint" and pick.random() < 0.4 else None
        return Call(verb, number, epoch, token, values.get(verb, ""), replaces)

    def collect(self, *, acknowledged: bool) -> None:
        """The orchestrator reads the inbox; without the acknowledgement, it all comes again."""
        for entry in self.bench.model.inbox:
            if entry.kind == "terminal":
                self.storage.setdefault(entry.number, (entry.subject, entry.token))
        if acknowledged:
            self.bench.acknowledge()

    def roll_back(self) -> None:
        if self.snapshots:
            self.bench.tick(1)  # nor restarts a server
            self.random.choice(self.snapshots).restore(self.bench)
            self.quiet_until = self.bench.model.now + TTL_MS
            self.seen["rolled back"] += 1

    def finish(self) -> None:
        """I11: when faults stop and one worker is left, every trial ends in bounded sweeps."""
        bench = self.bench
        for _ in range(MAX_FAILURES + MAX_LOSSES + 2):
            bench.tick(TTL_MS + GRACE_MS + BACKOFF_MS * 64)
            for number in range(4):
                self._reconcile(number)
                self.make(Call("reap", number, bench.model.epoch))
                self._send_on(number)
                self.nonce += 1
                claim = Call("claim", number, bench.model.epoch, value=f"nonce-{self.nonce}")
                if self.make(claim) == "OK":
                    token = bench.model.trials[number].token
                    self.make(Call("commit", number, bench.model.epoch, token, "COMPLETE"))
            self.collect(acknowledged=True)
            if set(self.storage) == set(range(4)):
                break
        assert set(self.storage) == set(range(4)), f"I11, I4: {self.storage}"
        for number, (state, _) in self.storage.items():
            self.make(Call("settle", number, bench.model.epoch, value=state))
            record = bench.model.trials.get(number)
            assert record is None or record.state in TERMINAL

    def _send_on(self, number: int) -> None:
        trial = self.bench.model.trials.get(number)
        if trial is not None and trial.state == "PAUSED":
            rung = str(trial.rung + 1)
            self.make(Call("unpark", number, self.bench.model.epoch, value=rung))

    def _reconcile(self, number: int) -> None:
        if number in self.storage:
            state, _ = self.storage[number]
            self.make(Call("settle", number, self.bench.model.epoch, value=state))
        else:
            self.make(Call("enqueue", number, self.bench.model.epoch))


@pytest.fixture
def binary(server):
    client = redis.Redis.from_url(server.url)
    yield client
    client.close()


@pytest.mark.timeout(1200)
def test_a_random_walk_with_rollbacks_keeps_every_invariant(client, binary):
    seed = int(os.environ.get("WALK_SEED", time.time_ns() % 10**9))
    print(f"seed {seed}; to take this walk again: WALK_SEED={seed}")
    walk = RandomWalk(client, binary, seed)
    walk.run(STEPS_IN_CI)
    while missed := EVERY_ANSWER - set(walk.seen):  # as rarely happens in so few steps
        assert walk.steps < 8 * STEPS_IN_CI, f"seed {seed}: never seen: {missed}"
        walk.run(walk.steps + STEPS_IN_CI)


#: What a walk must meet to be worth its name.
EVERY_ANSWER = {
    *(f"claim {answer}" for answer in ("OK", "HELD", "NOT_YET", "PAUSED", "DONE", "UNKNOWN")),
    *(f"park {answer}" for answer in ("OK", "DUP", "LOST")),
    *(f"unpark {answer}" for answer in ("OK", "NOTED", "SKIP", "UNKNOWN", "EPOCH")),
    *(f"{verb} {answer}" for verb in ("report", "checkpoint") for answer in ("OK", "OLD", "LOST")),
    *(f"commit {answer}" for answer in ("OK", "DUP", "LOST")),
    *(f"{verb} {answer}" for verb in ("renew", "release") for answer in ("OK", "LOST")),
    *(f"fail {answer}" for answer in ("REQUEUED", "DEAD", "LOST")),
    *(f"reap {answer}" for answer in ("REQUEUED", "DEAD", "LIVE", "SKIP")),
    *(f"enqueue {answer}" for answer in ("OK", "EXISTS")),
    "settle OK", "settle SKIP", "rolled back", "lost all",
}  # fmt: skip


def moves(model: Model, tokens: list[int]) -> list[Call | int]:
    """All that can happen to trial 0 next: calls, and times that pass (ms)."""
    epoch = model.epoch
    calls: list[Call | int] = [
        Call("enqueue", 0, epoch),
        Call("claim", 0, epoch, value="a"),
        Call("claim", 0, epoch, value="b"),
        Call("claim", 0, "epoch-0", value="a"),
        Call("reap", 0, epoch),
        Call("settle", 0, epoch, value="COMPLETE"),
        Call("unpark", 0, epoch, value="1"),
        TTL_MS + GRACE_MS,
    ]
    for token in {tokens[0], tokens[-1]} if tokens else {7}:
        calls += [Call(verb, 0, epoch, token) for verb in ("renew", "release", "reap")]
        calls += [Call("fail", 0, epoch, token, charge.value) for charge in Charge]
        calls += [Call("report", 0, epoch, token, step) for step in ("1", "2")]
        calls += [Call("checkpoint", 0, epoch, token, step) for step in ("1", "2")]
        calls += [Call("checkpoint", 0, epoch, token, "1", (saved_by, 2)) for saved_by in tokens]
        calls += [Call("park", 0, epoch, token, "0")]
        calls += [Call("commit", 0, epoch, token, "COMPLETE")]
        calls += [Call("commit", 0, "epoch-0", token, "COMPLETE")]
    return calls


def shape(bench: Bench) -> object:
    """What distinguishes two states of trial 0, with tokens, rungs and times taken out."""
    trial = bench.model.trials.get(0)
    if trial is None:
        return None
    return (
        replace(
            trial,
            token=0,
            attempt=0,
            rung=0,
            not_before=0,
            deadline=0,
            result_token=0,
            checkpoint_token=0,
        ),
        trial.not_before > bench.model.now,
        trial.deadline is not None and trial.deadline + GRACE_MS <= bench.model.now,
        len(bench.granted.get(0, [])) > 1,
        trial.result_token is None,
    )


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "most_states",
    [pytest.param(500, id="near"), pytest.param(10_000, marks=pytest.mark.long, id="all")],
)
def test_a_breadth_first_walk_takes_every_edge_from_every_state(client, binary, most_states):
    bench = Bench(client, binary)
    seen, edges = {shape(bench)}, 0
    left = deque([(Snapshot(bench), {}, {})])
    while left and len(seen) < most_states:
        snapshot, granted, sent_at = left.popleft()
        is_as_it_was = False
        for move in moves(snapshot.model, granted.get(0, [])):
            if not is_as_it_was:
                snapshot.restore(bench)
                bench.model = snapshot.model
                bench.granted, bench.sent_at = deepcopy(granted), dict(sent_at)
            edges += 1
            if isinstance(move, int):
                bench.tick(move)
                is_as_it_was = False
            else:
                is_as_it_was = bench.make(move) in REFUSALS
            if shape(bench) not in seen:
                seen.add(shape(bench))
                left.append((Snapshot(bench), deepcopy(bench.granted), dict(bench.sent_at)))
    print(f"{len(seen)} states, {edges} edges")
    assert len(seen) >= min(most_states, 1000)
    assert edges > 10 * len(seen)


GUARD = " or not holds(KEYS[2], ARGV[3])"

#: name -> (the scripts it is made to, what is taken out, what is put there)
MUTATIONS = {
    "a plain INCR for a token": (
        ["claim"],
        "math.max(tonumber(record[2]) + 1, now_us(ARGV[8]))",
        "tonumber(record[2]) + 1",
    ),
    "the clock alone for a token": (
        ["claim"],
        "math.max(tonumber(record[2]) + 1, now_us(ARGV[8]))",
        "now_us(ARGV[8])",
    ),
    "no guard in commit": (
        ["commit"],
        "if not holds(KEYS[2], ARGV[3]) then return {'LOST'} end",
        "",
    ),
    "no guard in report": (["report"], GUARD, ""),
    "no guard in checkpoint": (["checkpoint"], GUARD, ""),
    "no guard in renew": (["renew"], GUARD, ""),
    "no guard in release": (["release"], GUARD, ""),
    "no guard in fail": (["fail"], GUARD, ""),
    "no nonce": (["claim"], "record[3] == ARGV[4]", "false"),
    "no ZREM in claim": (["claim"], "redis.call('ZREM', KEYS[4], ARGV[2])", ""),
    "no ZREM when requeued": (
        ["release", "fail", "reap"],
        "redis.call('ZREM', leases, number)\n  redis.call('ZADD', queued",
        "redis.call('ZADD', queued",
    ),
    "no ZREM at the end": (
        ["commit"],
        "redis.call('ZREM', leases, number)\n  redis.call('ZREM', queued",
        "redis.call('ZREM', queued",
    ),
    "no DUP check": (
        ["commit"],
        "if record[1] == ARGV[3] then return {'DUP', record[2]} end",
        "",
    ),
    "no epoch check": (["commit"], "if not epoch_is(KEYS[1], ARGV[1])", "if false"),
    "no look at the token in reap": (["reap"], "record[2] ~= ARGV[3]", "false"),
    "no look at the deadline in reap": (["reap"], "if left > 0", "if false"),
    "a pointer that moves back": (["checkpoint"], "tonumber(ARGV[4]) <= tonumber(step)", "false"),
    "a pointer that moves back over another": (
        ["checkpoint"],
        "record[3] ~= ARGV[7]",
        "ARGV[7] == ''",
    ),
    "a pointer that moves back over nothing": (["checkpoint"], "record[3] ~= ARGV[7] or", ""),
    "no guard in park": (["park"], "if not holds(KEYS[2], ARGV[3])", "if false"),
    "no ZREM of the lease in park": (["park"], "redis.call('ZREM', KEYS[3], ARGV[2])", ""),
    "no DUP check in park": (["park"], "record[1] == 'PAUSED' and record[2] == ARGV[3]", "false"),
    "no look at the rung in unpark": (["unpark"], "tonumber(record[2] or 0) >=", "false and 0 >="),
    "no ZREM in unpark": (["unpark"], "redis.call('ZREM', KEYS[4], ARGV[2])", ""),
    "a paused trial can be claimed": (["claim"], "if state == 'PAUSED' then", "if false then"),
    "a paused trial is not settled": (["settle"], " or state == 'PAUSED'", ""),
    "failures without a bound": (["fail", "reap"], "count >= tonumber(most)", "false"),
    "an event of a claim that was made before": (
        ["claim"],
        "local grant = redis",
        "tell_event(KEYS[6], 'claimed', 'trial', ARGV[2])\nlocal grant = redis",
    ),
    "an end that is told nowhere": (
        ["commit"],
        "tell_event(told.events, 'ended'",
        "pcall(tostring, 'ended'",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_the_walk_catches_a_script_that_is_wrong(client, binary, monkeypatch, name):
    verbs, taken_out, put_there = MUTATIONS[name]
    right = scripts.script
    for verb in verbs:
        if taken_out not in right(verb).source:
            pytest.fail(f"{verb}.lua has changed: adapt this mutation")

    def wrong(verb):
        definition = right(verb)
        if verb not in verbs:
            return definition
        return replace(definition, source=definition.source.replace(taken_out, put_there))

    monkeypatch.setattr(scripts, "script", wrong)
    # some mistakes make a script stumble, or answer what no caller can read
    with pytest.raises((AssertionError, redis.ResponseError, ValueError)) as caught:
        RandomWalk(client, binary, seed=3).run(20_000)
    print(f"{name}: {caught.value}")
