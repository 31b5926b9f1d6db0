"""What trials printed, as far as Redis has it: the last 64 KB of each, by attempt.

Invariant: a text is kept once, however often it is told, and none holds half a character.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import redis

from workers.coordination import keys
from workers.coordination.scripts import Call, call_all

#: Bytes that are kept of a trial.
KEPT_BYTES: Final = 64 * 1024

#: For how long after the last of it: 3 days, as the records of trials that have ended.
_KEPT_MS: Final = 3 * 24 * 3600 * 1000


class Attempt(NamedTuple):
    """One attempt at a trial."""

    study: str
    trial: int
    number: int
    token: int
    generation: str | None = None

    @property
    def name(self) -> str:
        """What it is called among the attempts at its trial."""
        return f"{self.number}-{self.token}"


class Printed(NamedTuple):
    """Something that an attempt printed."""

    attempt: Attempt
    at: int
    """Bytes that it had printed before."""
    text: str
    is_over: bool
    """Whether it prints no more."""


class KeptOutput(NamedTuple):
    """What is kept of an attempt's output."""

    attempt: int
    token: int
    text: str
    end: int
    """Bytes that it has printed in all."""
    is_over: bool


@dataclass(frozen=True)
class TrialOutput:
    """What the trials of a fleet printed last."""

    client: redis.Redis

    def keep(self, printed: Sequence[Printed]) -> None:
        """Keep some output, all of it in one round trip.

        Raises:
            redis.RedisError: Redis is away, or takes no more.
        """
        calls = [
            Call(
                {
                    "study": keys.study(each.attempt.study),
                    "output": keys.output(each.attempt.study, each.attempt.trial),
                },
                {
                    "attempt": each.attempt.name,
                    "at": each.at,
                    "text": each.text,
                    "most": KEPT_BYTES,
                    "keep_ms": _KEPT_MS,
                    "is_over": int(each.is_over),
                    "generation": each.attempt.generation or "",
                },
            )
            for each in printed
        ]
        if calls:
            call_all(self.client, "print", calls)

    def of(self, study: str, trial: int) -> list[KeptOutput]:
        """What is kept of a trial's attempts, in their order; none of those that printed nothing.

        Raises:
            redis.RedisError: Redis is away.
        """
        found = self.client.hgetall(keys.output(study, trial))
        names = [field.partition(":")[2] for field in found if field.startswith("end:")]
        outputs = [
            KeptOutput(
                attempt=int(number),
                token=int(token),
                text=found.get(f"text:{name}", ""),
                end=int(found[f"end:{name}"]),
                is_over=f"over:{name}" in found,
            )
            for name in names
            for number, _, token in [name.partition("-")]
        ]
        return sorted(outputs, key=lambda each: each.token)
