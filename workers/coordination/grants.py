"""What is answered to whoever claims a trial, or takes one from a holder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from workers.coordination.trial_record import TrialRecord


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


#: What became of a trial whose attempt has ended badly.
Ended: TypeAlias = Literal["REQUEUED", "DEAD", "LOST", "LIVE", "SKIP"]
