"""Trial leases: the verbs of a trial's life as typed calls, each one script on the server.

Invariant: a write names the token that its holder was granted, and the script that would make the
write refuses any other. Losing a race is a return value, never an exception.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from workers.coordination import keys
from workers.coordination.grants import Ended, Grant, Refusal
from workers.coordination.identity import ProcessIdentity
from workers.coordination.trial_queue import TrialQueue, as_pairs
from workers.coordination.trial_record import CheckpointRef, TrialRecord, encode_drawn
from workers.protocol.errors import UnsealedError
from workers.protocol.events import Cause, brief
from workers.protocol.messages import Drawn, Pause, Result
from workers.protocol.pace import Pace
from workers.protocol.states import OUT_OF_MEMORY, Charge, Command, TrialState

#: How many entries an inbox takes with reports among them: some 20 MB. Ends and questions, of
#: which each trial has few, are always taken.
MAX_ENTRIES_WITH_REPORTS: Final = 100_000


@dataclass(frozen=True)
class TrialLeases(TrialQueue):
    """The trials of one study, under one epoch of Redis."""

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
            insists: Have it there all the same, and whatever is wanted of the study (WITHHELD).
            spec_sha1: Of the specification that the caller knows; refused (RESPEC) if it is old.
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
            return self._granted(number, *rest)
        return _refusal(status, *rest)

    def _granted(
        self, number: int, token: str, attempt: str, deadline_ms: str, is_noted: str, *pairs: str
    ) -> Grant | Refusal:
        """What a trial was granted with; given back if its record is not the fleet's own."""
        fields = dict(zip(pairs[::2], pairs[1::2], strict=True))
        record = None if self._is_altered(number, fields) else _readable(fields)
        if record is None:
            self.release(number, int(token), cause=Cause.HANDED_OVER)
            return Refusal("ALTERED")
        return Grant(int(token), int(attempt), int(deadline_ms), record, bool(is_noted))

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
        pace: Pace | None = None,
    ) -> Command | None:
        """Extend a lease; what is asked of the holder, or None if the lease is lost.

        Args:
            number: The trial.
            token: Its holder's.
            lease_seconds: For how long.
            step: How far the training is.
            first_step_seconds: How long after the claim it made its first step; None before.
            pace: How fast it is; None before that is known.
        """
        first_step_ms = _as_ms(first_step_seconds)
        ttl_ms = int(lease_seconds * 1000)
        answer = self._call(
            "renew",
            number,
            token=token,
            ttl_ms=ttl_ms,
            step=step,
            first_step_ms=first_step_ms,
            pace="" if pace is None else pace.encode(token),
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
        body = encode_drawn(params)
        answer = self._call(
            "take",
            number,
            token=token,
            body=body,
            seal=self._told(number, token, "taken", "", body),
            rest=as_pairs({name: each.value for name, each in params.items()}),
        )
        return answer[0] == "OK"

    def begin_anew(self, number: int, token: int, reason: str) -> str:
        """Tell that an attempt goes on from no checkpoint, though there is one: OK, DUP or LOST."""
        return self._call("begin_anew", number, token=token, detail=brief(reason))[0]

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

    def await_reply(self, number: int, token: int, timeout_seconds: float) -> dict[str, Any] | None:
        """The orchestrator's next answer to this holder, or None after `timeout_seconds`."""
        popped = self.client.blpop([keys.reply(self.study, number, token)], timeout=timeout_seconds)
        return None if popped is None else json.loads(popped[1])


def _refusal(status: str, *rest: str) -> Refusal:
    retry_ms = int(rest[0]) if status in {"HELD", "NOT_YET"} else 0
    return Refusal(status, retry_ms)  # type: ignore[arg-type]


def _readable(fields: Mapping[str, str]) -> TrialRecord | None:
    try:
        return TrialRecord.parse(fields)
    except ValueError:
        return None


def _as_ms(seconds: float | None) -> int | str:
    return "" if seconds is None else int(seconds * 1000)


def _charged(result: Result, charge: Charge) -> Result:
    return result.model_copy(update={"is_loss": charge is Charge.LOSS})
