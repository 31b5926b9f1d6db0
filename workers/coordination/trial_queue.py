"""What an orchestrator does with a study's trials: enqueue, answer, send on, settle; and looks.

Invariant: what it writes agrees with the storage, which has it on disk by then.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import redis

from workers.coordination import keys
from workers.coordination.clock import server_time_ms
from workers.coordination.scripts import Call, call, call_all
from workers.coordination.trial_calls import TrialCalls
from workers.coordination.trial_history import UnreadableRecord
from workers.coordination.trial_record import CheckpointRef, TrialRecord, encode_drawn
from workers.protocol.events import brief
from workers.protocol.messages import BrokenEntry, Drawn, InboxEntry
from workers.protocol.states import Command, TrialState

#: How long the record of a settled trial stays, for people who look: 3 days.
KEEP_SETTLED_MS: Final = 3 * 24 * 3600 * 1000

#: How long an answer waits for its holder: longer than the holder waits for it.
KEEP_REPLY_MS: Final = 60_000


def read_record(client: redis.Redis, study: str, number: int) -> TrialRecord | None:
    """A trial's record, for who only looks; None if there is none that can be read."""
    fields = client.hgetall(keys.trial(study, number))
    return _parsed(fields) if fields else None


def _parsed(fields: Mapping[str, str]) -> TrialRecord | None:
    with suppress(ValueError):  # its orchestrator finds it, and writes it anew
        return TrialRecord.parse(fields)
    return None


@dataclass(frozen=True)
class TrialQueue(TrialCalls):
    """The trials of one study, as its orchestrator has them run."""

    def enqueue(
        self,
        number: int,
        params: Mapping[str, Any],
        checkpoint: CheckpointRef | None = None,
        drawn: Mapping[str, Drawn] | None = None,
        *,
        rung: int = 0,
        is_paused: bool = False,
        history: Mapping[str, str] | None = None,
    ) -> bool:
        """Write a trial's record, to go on from a checkpoint if there is one.

        Args:
            number: The trial.
            params: Its parameters.
            checkpoint: The last one.
            drawn: Values that its objective may ask for.
            rung: Of a study that promotes: where it is on its way to, or paused.
            is_paused: Whether it waits there to be promoted.
            history: Of a record that cannot be read and that this one replaces: its fields that
                tell of the attempts before.

        Returns:
            False if there is a record already that is not to be replaced, or if Redis has lost its
            data since the epoch.
        """
        first = self._first_record(
            number,
            params,
            checkpoint,
            drawn,
            rung=rung,
            is_paused=is_paused,
            # by a name of its own, it takes the place of whatever is there
            asked_as="" if history is None else uuid.uuid4().hex,
            history=history,
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
        history: Mapping[str, str] | None = None,
    ) -> Call:
        state = TrialState.PAUSED if is_paused else TrialState.QUEUED
        last = checkpoint or CheckpointRef(0, "", "")
        return self._prepare(
            "enqueue",
            number,
            rest=as_pairs(params),
            rung=rung,
            state=state.value,
            generation=self.generation,
            asked_as=asked_as,
            drawn=encode_drawn(drawn or {}),
            seal=self._seal(number, params, drawn),
            history=json.dumps(dict(history)) if history else "",
            **last._asdict(),
        )

    def _seal(
        self, number: int, params: Mapping[str, Any], drawn: Mapping[str, Drawn] | None
    ) -> str:
        if not self.seals:
            return ""
        encoded = {name: json.dumps(value) for name, value in params.items()}
        return self.seals.put(number, encoded, encode_drawn(drawn or {}))

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
        text = fields["drawn"] if is_kept else encode_drawn(drawn)
        encoded = {name: json.dumps(value) for name, value in params.items()}
        seal = self.seals.put(number, encoded, text)
        self._call(
            "reseal",
            number,
            rest=as_pairs(params),
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

    def unpark(self, number: int, rung: int) -> str:
        """Send a paused trial on to a rung.

        OK, NOTED (it is not paused, and pauses there next), SKIP (it was sent there before, or has
        ended), UNKNOWN or EPOCH.
        """
        return self._call("unpark", number, rung=rung)[0]

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
        """A trial's record, or None if Redis has none that can be read."""
        return self.records([number]).get(number)

    def unreadable(self, number: int) -> UnreadableRecord | None:
        """A trial's record that cannot be read; None if it can be, or there is none."""
        fields = self._fields_of([number]).get(number)
        return None if fields is None else UnreadableRecord.of(number, fields)

    def drop_lease(self, number: int) -> None:
        """Forget the lease, which is over, of a trial whose record cannot be read."""
        self.client.zrem(keys.leases(self.study), str(number))

    def records(self, numbers: Sequence[int]) -> dict[int, TrialRecord]:
        """The records of some trials, in one round trip; without those that cannot be read."""
        found = {number: _parsed(fields) for number, fields in self._fields_of(numbers).items()}
        return {number: record for number, record in found.items() if record is not None}

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

    def is_queued(self, number: int) -> bool:
        """Whether a trial waits for a holder."""
        score = self.client.zscore(keys.queued(self.study), str(number))
        return score is not None

    def pause_seconds(self, number: int) -> float:
        """How long a trial may not be claimed yet: what is left of the pause after a failure."""
        not_before = 0
        with suppress(ValueError):  # somebody wrote there: the record is about to be written anew
            not_before = int(self.client.hget(keys.trial(self.study, number), "not_before") or 0)
        now = server_time_ms(self.client) if self.now_ms is None else self.now_ms
        return max(not_before - now, 0) / 1000


def as_pairs(params: Mapping[str, Any]) -> list[str]:
    """Parameters as a script takes them: names and values in turn, the values as JSON."""
    return [item for name, value in params.items() for item in (name, json.dumps(value))]
