"""The scripts of one study's trials as calls, with what all of them need filled in.

Invariant: a call is made under one epoch of Redis, and of an orchestrator only while it drives the
study.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import redis

from workers.coordination import keys
from workers.coordination.scripts import NOW, Call, Script, Value, Verb, call, script
from workers.coordination.study_lead import LEFT, left
from workers.protocol.seals import TrialSeals

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


@dataclass(frozen=True)
class TrialCalls:
    """One study's trials, as scripts see them."""

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

    def _told(self, number: int, token: int, kind: str, subject: str, body: str) -> str:
        """The seal of an entry of the inbox; empty without a secret."""
        if not (self.seals and self.seals.seal):
            return ""
        seals = self.seals
        if not self.generation:  # of whoever ends what another process ran
            known = self.client.hget(keys.trial(self.study, number), "generation") or ""
            seals = replace(seals, generation=known)
        return seals.told(number, token, kind, subject, body)

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
