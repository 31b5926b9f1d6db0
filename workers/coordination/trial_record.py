"""A trial's record in Redis, decoded: its state, what it runs, and what it has cost so far.

Invariant: what a release before wrote is read, too; a field that it lacked has its default.
One that cannot be read is named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, RootModel

from workers.protocol.messages import Drawn, Result, read_counts
from workers.protocol.pace import Pace
from workers.protocol.states import TrialState

M = TypeVar("M", bound=BaseModel)

#: What Redis takes for an integer, and how much of another text an error quotes.
_WHOLE: Final = re.compile(r"-?\d{1,18}")
_QUOTED: Final = 60

_PARAM: Final = "param:"
_LOST_ON: Final = "lost_on:"
_FAILED_IN: Final = "failed_in:"

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
    failed_in: frozenset[str] = frozenset()
    """Processes in which it failed."""
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
        """Decode the hash.

        Raises:
            ValueError: A field, which it names, holds what no release writes there.
        """
        reported = fields.get("reported_step")
        failure = _model(Result, fields, "error") if "error" in fields else None
        return cls(
            state=_state(fields),
            token=_number(fields, "token"),
            attempt=_number(fields, "attempt"),
            failures=_number(fields, "failures"),
            losses=_number(fields, "losses", 0),  # not in a record of a release before
            params=_params(fields),
            drawn=_model(_DrawnByName, fields, "drawn").root if "drawn" in fields else {},
            checkpoint=_checkpoint(fields),
            owner=fields.get("owner"),
            device=fields.get("device") or None,
            lost_on=_named(fields, _LOST_ON),
            failed_in=_named(fields, _FAILED_IN),
            rung=_number(fields, "rung", 0),
            step=_number(fields, "step", 0),
            reported_step=None if reported is None else _number(fields, "reported_step"),
            reported_value=None if reported is None else _real(fields, "reported_value"),
            not_before_ms=_number(fields, "not_before", 0),
            waits_for=fields.get("waits_for"),
            claimed_at_ms=_number(fields, "claimed_at", 0),
            deadline_ms=_number(fields, "deadline", 0),
            step_at_ms=_number(fields, "step_at", 0),
            pace=Pace.read(fields.get("pace"), _number(fields, "token")),
            held_ms=_number(fields, "held_ms", 0),
            gpu_ms=_number(fields, "gpu_ms", 0),
            result_token=_number(fields, "result_token") if "result_token" in fields else None,
            result_id=fields.get("result_id"),
            error=None if failure is None else failure.error,
            error_fingerprint=None if failure is None else failure.fingerprint,
            last_end=_last_end(fields),
            requeued=read_counts(fields.get("requeued", "")),
            num_anew=_number(fields, "anew", 0),
            generation=fields.get("generation"),
        )


def _params(fields: Mapping[str, str]) -> dict[str, Any]:
    return {
        name.removeprefix(_PARAM): _json(name, value)
        for name, value in fields.items()
        if name.startswith(_PARAM)
    }


def _named(fields: Mapping[str, str], prefix: str) -> frozenset[str]:
    return frozenset(name.removeprefix(prefix) for name in fields if name.startswith(prefix))


def _checkpoint(fields: Mapping[str, str]) -> CheckpointRef | None:
    if "checkpoint" not in fields:
        return None
    step, sha256 = _number(fields, "checkpoint_step"), _text(fields, "checkpoint_sha256")
    return CheckpointRef(step, fields["checkpoint"], sha256)


def _text(fields: Mapping[str, str], name: str) -> str:
    if name not in fields:
        raise ValueError(f"{name} is missing")
    return fields[name]


def _number(fields: Mapping[str, str], name: str, default: int | None = None) -> int:
    if default is not None and name not in fields:
        return default
    text = _text(fields, name)
    if _WHOLE.fullmatch(text) is None:  # nor could a script count on it
        raise ValueError(f"{name} = {text[:_QUOTED]!r} is no whole number")
    return int(text)


def _real(fields: Mapping[str, str], name: str) -> float:
    text = _text(fields, name)
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} = {text[:_QUOTED]!r} is no number") from None


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{name} = {text[:_QUOTED]!r} is no JSON") from None


def _state(fields: Mapping[str, str]) -> TrialState:
    text = _text(fields, "state")
    try:
        return TrialState(text)
    except ValueError:
        raise ValueError(f"state = {text[:_QUOTED]!r} is none of a trial") from None


def _model(kind: type[M], fields: Mapping[str, str], name: str) -> M:
    text = _text(fields, name)
    try:
        return kind.model_validate_json(text)
    except ValueError:
        raise ValueError(f"{name} = {text[:_QUOTED]!r} is not what a script wrote") from None


def _last_end(fields: Mapping[str, str]) -> LastEnd | None:
    cause = fields.get("end_cause")
    if not cause:
        return None
    return LastEnd(cause, fields.get("end_process") or None, fields.get("end_detail") or None)


def encode_drawn(drawn: Mapping[str, Drawn]) -> str:
    """Values that an objective may ask for, as a record has them; empty where there are none."""
    return _DrawnByName(dict(drawn)).model_dump_json() if drawn else ""
