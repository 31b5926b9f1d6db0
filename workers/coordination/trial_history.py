"""What a trial's record that cannot be read tells all the same of the attempts before.

Invariant: each field is kept that can be read by itself, so that nothing that was counted, and no
checkpoint, is lost with another one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Self

from workers.coordination.trial_record import CheckpointRef, TrialRecord
from workers.protocol.states import TrialState

#: Fields of a record that tell of its attempts; those that mean nothing without one another are
#: together.
_HISTORY: Final = (
    ("token",),
    ("attempt",),
    ("failures",),
    ("losses",),
    ("not_before",),
    ("claimed_at",),
    ("reported_step", "reported_value"),
    ("held_ms",),
    ("gpu_ms",),
    ("requeued",),
    ("anew",),
    ("error",),
    ("end_cause", "end_process", "end_detail"),
)
_SETS: Final = ("lost_on:", "failed_in:")

#: A record with nothing else in it that can be wrong.
_BLANK: Final = {"state": "QUEUED", "token": "0", "attempt": "0", "failures": "0"}

#: How the folder of a checkpoint ends.
_STEP: Final = re.compile(r"/step-(\d{1,15})/?$")


@dataclass(frozen=True, slots=True)
class TrialHistory:
    """What is known of a trial's attempts."""

    fields: Mapping[str, str] = field(default_factory=dict)
    """As a record has them."""
    checkpoint: CheckpointRef | None = None

    @classmethod
    def of(cls, record: Mapping[str, str]) -> Self:
        """What of a record can be read."""
        kept = {name: text for name, text in record.items() if name.startswith(_SETS)}
        for names in _HISTORY:
            together = {name: record[name] for name in names if name in record}
            if _can_be_read(together):
                kept |= together
        return cls(kept, _checkpoint(record))


@dataclass(frozen=True, slots=True)
class UnreadableRecord:
    """A record that cannot be read."""

    reason: str
    has_ended: bool
    """Whether it says so: its end is told, too."""
    history: TrialHistory

    @classmethod
    def of(cls, number: int, record: Mapping[str, str]) -> Self | None:
        """What is wrong with the record of a trial, if anything is."""
        try:
            TrialRecord.parse(record)
        except ValueError as error:
            reason = f"the record of trial {number} in Redis: {error}"
        else:
            return None
        with suppress(ValueError):
            has_ended = TrialState(record.get("state", "")).is_terminal
            return cls(reason, has_ended, TrialHistory.of(record))
        return cls(reason, has_ended=False, history=TrialHistory.of(record))


def _can_be_read(fields: Mapping[str, str]) -> bool:
    try:
        TrialRecord.parse(_BLANK | dict(fields))
    except ValueError:
        return False
    return True


def _checkpoint(record: Mapping[str, str]) -> CheckpointRef | None:
    """Where the record's checkpoint is; its folder tells the step, too."""
    uri = record.get("checkpoint", "")
    found = {"checkpoint_step": record.get("checkpoint_step", "")}
    sha256 = record.get("checkpoint_sha256", "")
    if uri and _can_be_read({"checkpoint": uri, "checkpoint_sha256": sha256, **found}):
        return CheckpointRef(int(found["checkpoint_step"]), uri, sha256)
    step = _STEP.search(uri)
    return None if step is None else CheckpointRef(int(step[1]), uri, sha256)
