"""A trial's record in Redis, decoded: its state, what it runs, and what it has cost so far.

Invariant: what a release before wrote is read, too; a field that it lacked has its default.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from pydantic import ConfigDict, RootModel

from workers.protocol.messages import Drawn, Result, read_counts
from workers.protocol.pace import Pace
from workers.protocol.states import TrialState

_PARAM: Final = "param:"
_LOST_ON: Final = "lost_on:"

#: How the name of a device ends that is no GPU; `count_time` in Lua has the same.
_CPU_SLOT: Final = re.compile(r"/cpu-\d+$")


class _DrawnByName(RootModel[dict[str, Drawn]]):
    # an adapter for the mapping alone would write null for what is not finite
    model_config = ConfigDict(ser_json_inf_nan="constants")


class CheckpointRef(NamedTuple):
    """Where a checkpoint lies, after which step it was taken, and the sum over its content."""

    step: int
    uri: str
    sha256: str


class LastEnd(NamedTuple):
    """Why an attempt has ended that another one follows."""

    cause: str
    """As its event tells it."""
    process: str | None = None
    """Whose it was."""
    detail: str | None = None


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
    deadline_ms: int = 0
    """Of one that runs: its lease's end, by the clock of Redis."""
    step_at_ms: int = 0
    """When `step` was told, by the same clock; 0 before."""
    pace: Pace | None = None
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
    last_end: LastEnd | None = None
    """Of a trial that is tried again: why its last attempt ended."""
    requeued: Mapping[str, int] = field(default_factory=dict)
    """How many of its attempts ended by which cause, with another one to come."""
    num_anew: int = 0
    """How many attempts went on from no checkpoint though there was one."""
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
            deadline_ms=int(fields.get("deadline", 0)),
            step_at_ms=int(fields.get("step_at", 0)),
            pace=Pace.read(fields.get("pace"), int(fields["token"])),
            held_ms=int(fields.get("held_ms", 0)),
            gpu_ms=int(fields.get("gpu_ms", 0)),
            result_token=int(fields["result_token"]) if "result_token" in fields else None,
            result_id=fields.get("result_id"),
            error=None if failure is None else failure.error,
            error_fingerprint=None if failure is None else failure.fingerprint,
            last_end=_last_end(fields),
            requeued=read_counts(fields.get("requeued", "")),
            num_anew=int(fields.get("anew", 0)),
            generation=fields.get("generation"),
        )


def _last_end(fields: Mapping[str, str]) -> LastEnd | None:
    cause = fields.get("end_cause")
    if not cause:
        return None
    return LastEnd(cause, fields.get("end_process") or None, fields.get("end_detail") or None)


def encode_drawn(drawn: Mapping[str, Drawn]) -> str:
    """Values that an objective may ask for, as a record has them; empty where there are none."""
    return _DrawnByName(dict(drawn)).model_dump_json() if drawn else ""
