"""Trial leases: the verbs of a trial's life as typed calls, each one script on the server.

Invariant: a write names the token that its holder was granted, and the script that would make the
write refuses any other. Losing a race is a return value, never an exception.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import redis
from pydantic import ConfigDict, RootModel

from workers.coordination import keys
from workers.coordination.clock import server_time_ms
from workers.coordination.identity import ProcessIdentity
from workers.coordination.scripts import NOW, Call, Script, Value, Verb, call, call_all, script
from workers.coordination.study_lead import LEFT, left
from workers.protocol.errors import UnsealedError
from workers.protocol.events import Cause, brief
from workers.protocol.messages import BrokenEntry, Drawn, InboxEntry, Pause, Result
from workers.protocol.seals import TrialSeals
from workers.protocol.states import OUT_OF_MEMORY, Charge, Command, TrialState

#: How long the record of a settled trial stays, for people who look: 3 days.
KEEP_SETTLED_MS: Final = 3 * 24 * 3600 * 1000

#: How long an answer waits for its holder: longer than the holder waits for it.
KEEP_REPLY_MS: Final = 60_000

#: How many entries an inbox takes with reports among them: some 20 MB. Ends and questions, of
#: which each trial has few, are always taken.
MAX_ENTRIES_WITH_REPORTS: Final = 100_000


class _DrawnByName(RootModel[dict[str, Drawn]]):
    # an adapter for the mapping alone would write null for what is not finite
    model_config = ConfigDict(ser_json_inf_nan="constants")


_PARAM: Final = "param:"
_LOST_ON: Final = "lost_on:"

#: How the name of a device ends that is no GPU; `count_time` in Lua has the same.
_CPU_SLOT: Final = re.compile(r"/cpu-\d+$")

_KEYS: Final[dict[str, Callable[[str, int], str]]] = {
    "trial": keys.trial,
    "leases": lambda study, _number: keys.leases(study),
    "queued": lambda study, _number: keys.queued(study),
    "paused": lambda study, _number: keys.paused(study),
    "inbox": lambda study, _number: keys.inbox(study),
    "study": lambda study, _number: keys.study(study),
    "events": lambda study, _number: keys.events(study),
    "lead": lambda study, _number: keys.lead(study),
}


class CheckpointRef(NamedTuple):
    """Where a checkpoint lies, after which step it was taken, and the sum over its content."""

    step: int
    uri: str
    sha256: str


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """A trial's record, decoded."""

    state: TrialState
    token: int
    attempt: int
    failures: int
    losses: int
    params: dict[str, Any]
    drawn: Mapping[str, Drawn] = field(default_factory=dict)
    """Values that its objective may ask for."""
    checkpoint: CheckpointRef | None = None
    owner: str | None = None
    device: str | None = None
    """Where it runs, or ran last."""
    lost_on: frozenset[str] = frozenset()
    """Devices that broke under it."""
    rung: int = 0
    """Of a study that promotes: the rung that it is on its way to, or paused at."""
    step: int = 0
    reported_step: int | None = None
    """The highest one."""
    reported_value: float | None = None
    not_before_ms: int = 0
    waits_for: str | None = None
    """Of a trial that was given back: what it lacked."""
    claimed_at_ms: int = 0
    held_ms: int = 0
    """How long its attempts that have ended held a slot, together."""
    gpu_ms: int = 0
    """Likewise, a slot with a GPU."""
    result_token: int | None = None
    """Of a trial that has ended: the attempt whose end counts."""
    result_id: str | None = None
    """Likewise: the entry of the inbox that tells it."""
    error: str | None = None
    error_fingerprint: str | None = None
    """Of the last failure: what tells the same traceback from another one."""
    generation: str | None = None
    """Of its study; None in a record of a release before."""

    def held_seconds(self, now_ms: int) -> tuple[float, float]:
        """How long its attempts have held slots until now, and slots with a GPU."""
        is_running = self.state is TrialState.RUNNING
        now_held = max(now_ms - self.claimed_at_ms, 0) if is_running else 0
        has_gpu = self.device is not None and _CPU_SLOT.search(self.device) is None
        return (self.held_ms + now_held) / 1000, (self.gpu_ms + now_held * has_gpu) / 1000

    @classmethod
    def parse(cls, fields: Mapping[str, str]) -> TrialRecord:
        """Decode the hash."""
        checkpoint = None
        if "checkpoint" in fields:
            checkpoint = CheckpointRef(
                int(fields["checkpoint_step"]), fields["checkpoint"], fields["checkpoint_sha256"]
            )
        reported = fields.get("reported_step")
        failure = Result.model_validate_json(fields["error"]) if "error" in fields else None
        return cls(
            state=TrialState(fields["state"]),
            token=int(fields["token"]),
            attempt=int(fields["attempt"]),
            failures=int(fields["failures"]),
            losses=int(fields.get("losses", 0)),  # not in a record of a release before
            params={
                name.removeprefix(_PARAM): json.loads(value)
                for name, value in fields.items()
                if name.startswith(_PARAM)
            },
            drawn=_DrawnByName.model_validate_json(fields["drawn"]).root
            if "drawn" in fields
            else {},
            checkpoint=checkpoint,
            owner=fields.get("owner"),
            device=fields.get("device") or None,
            lost_on=frozenset(
                name.removeprefix(_LOST_ON) for name in fields if name.startswith(_LOST_ON)
            ),
            rung=int(fields.get("rung", 0)),
            step=int(fields.get("step", 0)),
            reported_step=None if reported is None else int(reported),
            reported_value=None if reported is None else float(fields["reported_value"]),
            not_before_ms=int(fields.get("not_before", 0)),
            waits_for=fields.get("waits_for"),
            claimed_at_ms=int(fields.get("claimed_at", 0)),
            held_ms=int(fields.get("held_ms", 0)),
            gpu_ms=int(fields.get("gpu_ms", 0)),
            result_token=int(fields["result_token"]) if "result_token" in fields else None,
            result_id=fields.get("result_id"),
            error=None if failure is None else failure.error,
            error_fingerprint=None if failure is None else failure.fingerprint,
            generation=fields.get("generation"),
        )


@dataclass(frozen=True, slots=True)
class Grant:
    """The right to run a trial until `deadline_ms` on the server's clock, and what to run."""

    token: int
    attempt: int
    deadline_ms: int
    record: TrialRecord
    is_noted: bool = False
    """Whether the record of the holder's process names the trial."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a trial cannot be claimed; `retry_ms` tells when asking again may help."""

    reason: Literal[
        "HELD",
        "NOT_YET",
        "ELSEWHERE",
        "WITHHELD",
        "PAUSED",
        "RESPEC",
        "DONE",
        "UNKNOWN",
        "ALTERED",
    ]
    retry_ms: int = 0


Ended: TypeAlias = Literal["REQUEUED", "DEAD", "LOST", "LIVE", "SKIP"]


@dataclass(frozen=True)
class TrialLeases:
    """The trials of one study, under one epoch of Redis."""

    client: redis.Redis
    study: str
    epoch: str
    #: The study's, written into each record: a trial of an earlier study of the name is no other's.
    generation: str = field(default="", compare=False)
    #: Who drives the study, of an orchestrator: it writes only as long as it does.
    leader: str = field(default="", compare=False)
    #: Milliseconds that stand in for the server's clock; for tests only.
    now_ms: int | None = field(default=None, compare=False)
    #: Sign what is enqueued and answered, and tell it from what others wrote; by default, nothing.
    seals: TrialSeals | None = field(default=None, compare=False)

    def enqueue(
        self,
        number: int,
        params: Mapping[str, Any],
        checkpoint: CheckpointRef | None = None,
        drawn: Mapping[str, Drawn] | None = None,
        *,
        rung: int = 0,
        is_paused: bool = False,
    ) -> bool:
        """Write a trial's record, to go on from a checkpoint if there is one.

        Args:
            number: The trial.
            params: Its parameters.
            checkpoint: The last one.
            drawn: Values that its objective may ask for.
            rung: Of a study that promotes: where it is on its way to, or paused.
            is_paused: Whether it waits there to be promoted.

        Returns:
            False if there is a record already, or if Redis has lost its data since the epoch.
        """
        first = self._first_record(
            number, params, checkpoint, drawn, rung=rung, is_paused=is_paused
        )
        (answer,) = self._led(call(self.client, "enqueue", *first))
        return answer == "OK"

    def enqueue_all(
        self,
        params: Mapping[int, Mapping[str, Any]],
        drawn: Mapping[int, Mapping[str, Drawn]] | None = None,
    ) -> None:
        """Write the records of trials that were asked just now, in one round trip.

        What lies there under their numbers is of trials that the storage has lost.

        Args:
            params: Of each trial.
            drawn: Values that the objective of a trial may ask for.
        """
        asked_as = uuid.uuid4().hex
        calls = [
            self._first_record(number, each, drawn=(drawn or {}).get(number), asked_as=asked_as)
            for number, each in params.items()
        ]
        if calls:
            self._led(*call_all(self.client, "enqueue", calls))

    def _first_record(
        self,
        number: int,
        params: Mapping[str, Any],
        checkpoint: CheckpointRef | None = None,
        drawn: Mapping[str, Drawn] | None = None,
        *,
        rung: int = 0,
        is_paused: bool = False,
        asked_as: str = "",
    ) -> Call:
        state = TrialState.PAUSED if is_paused else TrialState.QUEUED
        last = checkpoint or CheckpointRef(0, "", "")
        return self._prepare(
            "enqueue",
            number,
            rest=_pairs(params),
            rung=rung,
            state=state.value,
            generation=self.generation,
            asked_as=asked_as,
            drawn=_encode_drawn(drawn or {}),
            seal=self._seal(number, params, drawn),
            **last._asdict(),
        )

    def _seal(
        self, number: int, params: Mapping[str, Any], drawn: Mapping[str, Drawn] | None
    ) -> str:
        if not self.seals:
            return ""
        encoded = {name: json.dumps(value) for name, value in params.items()}
        return self.seals.put(number, encoded, _encode_drawn(drawn or {}))

    def _told(self, number: int, token: int, kind: str, subject: str, body: str) -> str:
        """The seal of an entry of the inbox; empty without a secret."""
        if not (self.seals and self.seals.seal):
            return ""
        seals = self.seals
        if not self.generation:  # of whoever ends what another process ran
            known = self.client.hget(keys.trial(self.study, number), "generation") or ""
            seals = replace(seals, generation=known)
        return seals.told(number, token, kind, subject, body)

    def is_told(self, entry: InboxEntry | BrokenEntry) -> bool:
        """Whether a member of the fleet put an entry into the inbox; without a secret, always."""
        if not (self.seals and self.seals.seal):
            return True
        if isinstance(entry, BrokenEntry):
            return False
        told = entry.number, entry.token, entry.kind, entry.subject, entry.body
        return self.seals.is_told(entry.seal, *told)

    def forget(self, number: int) -> None:
        """Drop a trial's record: it is written anew from the storage; orchestrator only."""
        pipeline = self.client.pipeline()
        pipeline.delete(keys.trial(self.study, number))
        for waiting in (keys.leases, keys.queued, keys.paused):
            pipeline.zrem(waiting(self.study), str(number))
        pipeline.execute()

    def reseal(
        self,
        number: int,
        fields: Mapping[str, str],
        params: Mapping[str, Any],
        drawn: Mapping[str, Drawn],
    ) -> None:
        """Have a record that is there be signed by the secret that signs now.

        What its objective has taken of what was drawn is drawn still, and taken again.

        Args:
            number: The trial.
            fields: Its record, as it was found; of that, draws are kept that the fleet signed.
            params: Its parameters, as the storage has them.
            drawn: Values that its objective may ask for, where the record's are not the fleet's.
        """
        if self.seals is None:
            return
        is_kept = "drawn" in fields and self.seals.has_sealed_drawn(number, fields)
        text = fields["drawn"] if is_kept else _encode_drawn(drawn)
        encoded = {name: json.dumps(value) for name, value in params.items()}
        seal = self.seals.put(number, encoded, text)
        self._call(
            "reseal",
            number,
            rest=_pairs(params),
            drawn=text,
            seal=seal,
            generation=self.generation,
        )

    def unsealed(self, numbers: Sequence[int]) -> dict[int, Mapping[str, str]]:
        """Records of which not all is signed by the secret that signs now; without one, none.

        One that is not there is as it should be.
        """
        if not (self.seals and self.seals.seal):
            return {}
        return {
            number: fields
            for number, fields in self._fields_of(numbers).items()
            if fields.get("generation", "") != self.generation
            or not self.seals.is_latest(number, fields)
        }

    def trusted(self, number: int, work: str) -> TrialLeases:
        """The same for one trial, whose record is the fleet's own.

        Args:
            number: The trial.
            work: What identifies what the study's trials run.

        Raises:
            UnsealedError: It is not signed.
        """
        if not (self.seals and self.seals.seal):
            return self
        fields = self.client.hgetall(keys.trial(self.study, number))
        generation = fields.get("generation", "")
        seals = replace(self.seals, generation=generation, work=work)
        if fields:  # else a claim says so
            seals.check(number, fields)
        return replace(self, generation=generation, seals=seals)

    def claim(
        self,
        number: int,
        owner: str,
        lease_seconds: float,
        nonce: str | None = None,
        *,
        device: str = "",
        insists: bool = False,
        spec_sha1: str = "",
        is_assigned: bool = False,
    ) -> Grant | Refusal:
        """Ask for a trial. A retry of the same call, by its nonce, gets the same grant.

        Args:
            number: The trial.
            owner: This process.
            lease_seconds: How long the grant is to last.
            nonce: Drawn anew by default.
            device: Where it would run; refused (ELSEWHERE) if that broke under it before.
            insists: Whether to have it on that device all the same, and whatever is wanted of the
                study (WITHHELD).
            spec_sha1: The sum of the specification that the caller knows; refused (RESPEC) if the
                study has another one by now.
            is_assigned: Whether the owner is a process whose record is to name the trial.
        """
        status, *rest = self._call(
            "claim",
            number,
            extra_keys={"process": keys.process(owner)},
            owner=owner,
            nonce=nonce or uuid.uuid4().hex,
            ttl_ms=int(lease_seconds * 1000),
            device=device,
            insists="1" if insists else "",
            spec_sha1=spec_sha1,
            assigned=json.dumps(self.study) if is_assigned else "",
        )
        if status == "OK":
            token, attempt, deadline_ms, is_noted, *pairs = rest
            fields = dict(zip(pairs[::2], pairs[1::2], strict=True))
            if self._is_altered(number, fields):
                self.release(number, int(token), cause=Cause.HANDED_OVER)
                return Refusal("ALTERED")
            record = TrialRecord.parse(fields)
            return Grant(int(token), int(attempt), int(deadline_ms), record, bool(is_noted))
        if status in {"HELD", "NOT_YET"}:
            return Refusal(status, int(rest[0]))  # type: ignore[arg-type]
        return Refusal(status)  # type: ignore[arg-type]

    def _is_altered(self, number: int, fields: Mapping[str, str]) -> bool:
        """Whether a record that is granted is not the one that was found to be the fleet's own."""
        if not (self.seals and self.seals.seal):
            return False
        try:
            self.seals.check(number, fields)
        except UnsealedError:
            return True
        return fields.get("generation", "") != self.generation

    def renew(
        self,
        number: int,
        token: int,
        lease_seconds: float,
        step: int,
        first_step_seconds: float | None = None,
    ) -> Command | None:
        """Extend a lease; what is asked of the holder, or None if the lease is lost.

        Args:
            number: The trial.
            token: Its holder's.
            lease_seconds: For how long.
            step: How far the training is.
            first_step_seconds: How long after the claim it made its first step; None before.
        """
        first_step_ms = _as_ms(first_step_seconds)
        ttl_ms = int(lease_seconds * 1000)
        answer = self._call(
            "renew", number, token=token, ttl_ms=ttl_ms, step=step, first_step_ms=first_step_ms
        )
        return Command.read(answer[2]) if answer[0] == "OK" else None

    def report(self, number: int, token: int, step: int, value: float) -> str:
        """Hand in an intermediate value.

        OK, OLD (this attempt's last report was of this step), FULL (left out: nobody reads the
        inbox) or LOST.
        """
        text = json.dumps(value)
        return self._call(
            "report",
            number,
            token=token,
            step=step,
            value=text,
            most=MAX_ENTRIES_WITH_REPORTS,
            seal=self._told(number, token, "report", str(step), text),
        )[0]

    def suggest(self, number: int, token: int, name: str, distribution: str) -> list[str]:
        """Ask for a parameter.

        VALUE with its JSON and its seal, OK (asked; await the reply) or LOST.
        """
        seal = self._told(number, token, "suggest", name, distribution)
        return self._call(
            "suggest", number, token=token, name=name, distribution=distribution, seal=seal
        )

    def check_answer(self, number: int, name: str, value: str, seal: str | None) -> None:
        """Refuse a parameter, in JSON, that the orchestrator did not answer with.

        Raises:
            UnsealedError: It did not sign it.
        """
        if self.seals:
            self.seals.check_answer(number, name, value, seal)

    def take(self, number: int, token: int, params: Mapping[str, Drawn]) -> bool:
        """Tell which drawn parameters the objective asked for; False if the lease is lost."""
        body = _encode_drawn(params)
        answer = self._call(
            "take",
            number,
            token=token,
            body=body,
            seal=self._told(number, token, "taken", "", body),
            rest=_pairs({name: each.value for name, each in params.items()}),
        )
        return answer[0] == "OK"

    def reply(
        self,
        number: int,
        token: int,
        message: Mapping[str, Any],
        *,
        command: Command | None = None,
        param: tuple[str, Any] | None = None,
    ) -> bool:
        """Answer a holder; False if it holds the trial no more."""
        name, value = param or ("", None)
        text = json.dumps(value)
        seal = self.seals.answer(number, name, text) if self.seals and param else ""
        answer = self._call(
            "reply",
            number,
            token=token,
            extra_keys={"reply": keys.reply(self.study, number, token)},
            message=json.dumps({**message, "seal": seal} if seal else message),
            ttl_ms=KEEP_REPLY_MS,
            command=command or "",
            param=name,
            value=text,
            seal=seal,
        )
        return answer[0] == "OK"

    def checkpoint(self, number: int, token: int, ref: CheckpointRef, replaces: str = "") -> str:
        """Move the checkpoint pointer forward: OK, OLD or LOST.

        Args:
            number: The trial.
            token: Its holder's.
            ref: Where it is to point.
            replaces: The uri of a checkpoint that its holder could not load: from there, and from
                nowhere else, the pointer moves back, too.
        """
        return self._call("checkpoint", number, token=token, replaces=replaces, **ref._asdict())[0]

    def commit(
        self,
        number: int,
        token: int,
        state: TrialState,
        result: Result,
        cause: Cause | None = None,
        first_step_seconds: float | None = None,
        freed: ProcessIdentity | None = None,
    ) -> str:
        """End a trial: OK, DUP (this very commit was made before) or LOST.

        Args:
            number: The trial.
            token: Its holder's.
            state: How it ended.
            result: With what.
            cause: Why, where that is no matter of course.
            first_step_seconds: How long after the claim training made its first step, if it did.
            freed: The process whose record is to name no trial any more.
        """
        if OUT_OF_MEMORY in result.constraints:
            cause = Cause.OUT_OF_MEMORY
        payload = result.model_dump_json()
        return self._call(
            "commit",
            number,
            extra_keys={"process": keys.process(freed or "")},
            token=token,
            state=state.value,
            payload=payload,
            value=json.dumps(result.values[0]) if result.values else "",
            cause=cause or "",
            detail=brief(result.error),
            first_step_ms=_as_ms(first_step_seconds),
            frees="" if freed is None else "1",
            seal=self._told(number, token, "terminal", state.value, payload),
        )[0]

    def park(
        self, number: int, token: int, pause: Pause, first_step_seconds: float | None = None
    ) -> str:
        """Pause a trial at its rung, with its checkpoint: OK, DUP (it was done before) or LOST."""
        body = pause.model_dump_json(exclude={"rung"})
        return self._call(
            "park",
            number,
            token=token,
            rung=pause.rung,
            payload=body,
            value=json.dumps(pause.value),
            first_step_ms=_as_ms(first_step_seconds),
            seal=self._told(number, token, "pause", str(pause.rung), body),
        )[0]

    def unpark(self, number: int, rung: int) -> str:
        """Send a paused trial on to a rung.

        OK, NOTED (it is not paused, and pauses there next), SKIP (it was sent there before, or has
        ended), UNKNOWN or EPOCH.
        """
        return self._call("unpark", number, rung=rung)[0]

    def release(
        self,
        number: int,
        token: int,
        backoff_seconds: float = 0.0,
        pause_seconds: float = 0.0,
        reason: str = "",
        cause: Cause = Cause.DRAINED,
        first_step_seconds: float | None = None,
    ) -> bool:
        """Give a trial back, uncounted; False if it was not held.

        Args:
            number: The trial.
            token: Its holder's.
            backoff_seconds: How long another attempt waits; doubled with each time.
            pause_seconds: How long it waits at least.
            reason: For what, if anything, for people.
            cause: Why it is given back.
            first_step_seconds: How long after the claim training made its first step, if it did.
        """
        answer = self._call(
            "release",
            number,
            token=token,
            backoff_ms=int(backoff_seconds * 1000),
            pause_ms=int(pause_seconds * 1000),
            reason=reason,
            cause=cause,
            first_step_ms=_as_ms(first_step_seconds),
        )
        return answer[0] == "OK"

    def fail(
        self,
        number: int,
        token: int,
        result: Result,
        most: int,
        backoff_seconds: float,
        charge: Charge = Charge.FAILURE,
        lost_on: str = "",
        cause: Cause | None = None,
        first_step_seconds: float | None = None,
    ) -> Ended:
        """Count this attempt as a failure, or as a loss: REQUEUED, DEAD (after `most`) or LOST."""
        cause = cause or (Cause.FAILED if charge is Charge.FAILURE else Cause.BROKE)
        payload = _charged(result, charge).model_dump_json()
        return self._call(  # type: ignore[return-value]
            "fail",
            number,
            token=token,
            error=Result(error=result.error, fingerprint=result.fingerprint).model_dump_json(),
            payload=payload,
            charge=charge.value,
            most=most,
            backoff_ms=int(backoff_seconds * 1000),
            lost_on=lost_on,
            cause=cause,
            detail=brief(result.error),
            first_step_ms=_as_ms(first_step_seconds),
            seal=self._told(number, token, "terminal", TrialState.DEAD.value, payload),
        )[0]

    def reap(
        self,
        number: int,
        error: str,
        *,
        most: int,
        backoff_seconds: float,
        charge: Charge = Charge.LOSS,
        grace_seconds: float = 0.0,
        dead_token: int | None = None,
    ) -> Ended:
        """Take a trial from a vanished holder, and count its attempt.

        REQUEUED, DEAD (after `most`), LIVE (not yet due) or SKIP (nothing to do).
        """
        text = _charged(Result(error=error), charge).model_dump_json()
        return self._call(  # type: ignore[return-value]
            "reap",
            number,
            dead_token=dead_token or "",
            grace_ms=int(grace_seconds * 1000),
            error=text,
            charge=charge.value,
            most=most,
            backoff_ms=int(backoff_seconds * 1000),
            detail=brief(error),
            seal=self._told(number, dead_token or 0, "terminal", TrialState.DEAD.value, text),
        )[0]

    def pause_seconds(self, number: int) -> float:
        """How long a trial may not be claimed yet: what is left of the pause after a failure."""
        not_before = int(self.client.hget(keys.trial(self.study, number), "not_before") or 0)
        now = server_time_ms(self.client) if self.now_ms is None else self.now_ms
        return max(not_before - now, 0) / 1000

    def is_queued(self, number: int) -> bool:
        """Whether a trial waits for a holder."""
        score = self.client.zscore(keys.queued(self.study), str(number))
        return score is not None

    def settle(
        self, number: int, state: TrialState, *, only_queued: bool = False, reason: str = ""
    ) -> bool:
        """Make Redis agree with the storage; False if there was nothing to settle.

        Args:
            number: The trial.
            state: How it ended.
            only_queued: Leave a trial alone that somebody runs.
            reason: Why, for people.
        """
        answer = self._call(
            "settle",
            number,
            state=state.value,
            keep_ms=KEEP_SETTLED_MS,
            only_queued="1" if only_queued else "",
            detail=brief(reason),
        )
        return answer[0] == "OK"

    def settle_all(self, ended: Mapping[int, TrialState]) -> None:
        """Make Redis agree with the storage on some trials, in one round trip."""
        calls = [
            self._prepare(
                "settle",
                number,
                state=state.value,
                keep_ms=KEEP_SETTLED_MS,
                only_queued="",
                detail="",
            )
            for number, state in ended.items()
        ]
        if calls:
            self._led(*call_all(self.client, "settle", calls))

    def is_current(self) -> bool:
        """Whether Redis still has the data of this epoch."""
        return bool(self.client.get(keys.EPOCH) == self.epoch)

    def record(self, number: int) -> TrialRecord | None:
        """A trial's record, or None if Redis has none."""
        fields = self.client.hgetall(keys.trial(self.study, number))
        return TrialRecord.parse(fields) if fields else None

    def records(self, numbers: Sequence[int]) -> dict[int, TrialRecord]:
        """The records of some trials, in one round trip; without those that Redis has not."""
        found = self._fields_of(numbers)
        return {number: TrialRecord.parse(fields) for number, fields in found.items()}

    def _fields_of(self, numbers: Sequence[int]) -> dict[int, Mapping[str, str]]:
        pipeline = self.client.pipeline(transaction=False)
        for number in numbers:
            pipeline.hgetall(keys.trial(self.study, number))
        found = zip(numbers, pipeline.execute(), strict=True)
        return {number: fields for number, fields in found if fields}

    def running(self) -> dict[int, int]:
        """Trials with a lease, and its end in ms on the server's clock."""
        pairs = self.client.zrange(keys.leases(self.study), 0, -1, withscores=True)
        return {int(number): int(deadline) for number, deadline in pairs}

    def queued(self) -> dict[int, int]:
        """Trials that wait for a holder, and since when in ms on the server's clock."""
        pairs = self.client.zrange(keys.queued(self.study), 0, -1, withscores=True)
        return {int(number): int(since) for number, since in pairs}

    def paused(self) -> dict[int, int]:
        """Trials that were paused at a rung, and since when in ms on the server's clock."""
        pairs = self.client.zrange(keys.paused(self.study), 0, -1, withscores=True)
        return {int(number): int(since) for number, since in pairs}

    def await_reply(self, number: int, token: int, timeout_seconds: float) -> dict[str, Any] | None:
        """The orchestrator's next answer to this holder, or None after `timeout_seconds`."""
        popped = self.client.blpop([keys.reply(self.study, number, token)], timeout=timeout_seconds)
        return None if popped is None else json.loads(popped[1])

    def _call(
        self,
        verb: Verb,
        number: int,
        *,
        rest: list[str] | None = None,
        extra_keys: Mapping[str, str] | None = None,
        **arguments: Value,
    ) -> list[str]:
        names, given, pairs = self._prepare(
            verb, number, rest=rest, extra_keys=extra_keys, **arguments
        )
        answer = call(self.client, verb, names, given, pairs)
        self._led(answer)
        return answer

    def _led(self, *answers: Sequence[str]) -> list[str]:
        """The status words of some answers.

        Raises:
            StudyTakenOverError: This orchestrator drives the study no more.
        """
        statuses = [answer[0] for answer in answers]
        if LEFT in statuses:
            raise left(self.study)
        return statuses

    def _prepare(
        self,
        verb: Verb,
        number: int,
        *,
        rest: list[str] | None = None,
        extra_keys: Mapping[str, str] | None = None,
        **arguments: Value,
    ) -> Call:
        definition: Script = script(verb)
        names = {"epoch": keys.EPOCH, **(extra_keys or {})}
        for name in definition.keys:
            if name in _KEYS:
                names[name] = _KEYS[name](self.study, number)
        given: dict[str, Value] = {"epoch": self.epoch, "number": number, **arguments}
        if self.now_ms is not None and NOW in definition.arguments:
            given[NOW] = self.now_ms
        if "leader" in definition.arguments:
            given["leader"] = self.leader
        return Call(names, given, rest or [])


def _encode_drawn(drawn: Mapping[str, Drawn]) -> str:
    return _DrawnByName(dict(drawn)).model_dump_json() if drawn else ""


def _pairs(params: Mapping[str, Any]) -> list[str]:
    return [item for name, value in params.items() for item in (name, json.dumps(value))]


def _as_ms(seconds: float | None) -> int | str:
    return "" if seconds is None else int(seconds * 1000)


def _charged(result: Result, charge: Charge) -> Result:
    return result.model_copy(update={"is_loss": charge is Charge.LOSS})
