"""A trial's life in sentences: each attempt, where it ran, why it ended, and what it cost.

Invariant: what is not known is not said, and nothing that a user wrote reaches a terminal raw.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from typing import Final

from orchestrator.views.ps import printable
from orchestrator.views.trial_life import Attempt, TrialLife
from workers.protocol.events import Cause
from workers.protocol.states import TrialState

#: What ended an attempt. `{detail}` is what was told beside it.
_CAUSES: Final[dict[str, str]] = {
    Cause.FAILED: "the objective failed",
    Cause.OUT_OF_MEMORY: "it ran out of memory",
    Cause.BROKE: "a CUDA error broke its process",
    Cause.NO_PROGRESS: "it stood still for too long",
    Cause.DIED: "its process died under it",
    Cause.LOADER_DIED: "a loader process died under it",
    Cause.LEASE_LOST: "its lease ran out: the worker, its host or the network was gone",
    Cause.DRAINED: "its worker shut down, and it gave the trial back",
    Cause.PAUSED: "the study was paused, and it gave the trial back",
    Cause.HANDED_OVER: "its process could not run it, and left it to another one",
    Cause.LACKING: "it lacked something",
    Cause.REDIS_AWAY: "Redis was away for longer than its lease",
    Cause.CANCELLED: "the study was cancelled",
    Cause.TIMED_OUT: "it held slots for as long as it may",
    Cause.WITHDRAWN: "nobody is to begin it any more",
    Cause.SETTLED: "the study's results had it as ended",
}

#: What each counts as, where it is counted.
_COUNTED: Final = {
    Cause.FAILED: "failure",
    Cause.OUT_OF_MEMORY: "failure",
    Cause.NO_PROGRESS: "failure",
    Cause.BROKE: "loss",
    Cause.DIED: "loss",
    Cause.LOADER_DIED: "loss",
    Cause.LEASE_LOST: "loss",
}

#: Causes whose detail tells no more than they do.
_SAID: Final = {Cause.CANCELLED, Cause.LEASE_LOST}

#: Before a line that an attempt printed.
PRINTED_MARK: Final = "    | "

#: Characters of a line that an attempt printed.
_LINE: Final = 160

#: Seconds; what is shorter is not worth a word.
_TOLD: Final = 0.05

#: What has an attempt find the checkpoints of those before it.
_ANEW_WAY: Final = "have all workers share one FLEET_HOME, or give them a FLEET_STORE"

_CPU_SLOT: Final = re.compile(r"(?:^|/)cpu-(\d+)$")


def explain(life: TrialLife) -> Iterator[str]:
    """The sentences, a line each: the trial first, then its attempts, then what they cost."""
    yield f"trial {life.trial} of {life.study}: {_state(life)}"
    if life.params:
        told = ", ".join(f"{name}={value}" for name, value in life.params.items())
        yield printable(f"parameters: {told}")
    yield from _orders(life)
    if life.is_without_events:
        yield "no event of it is left; this is what the study's results say"
    if life.error is not None:
        yield printable(f"error: {life.error}")
    if life.asked_at is not None:
        yield f"asked for at {clock(life.asked_at)}{_waited(life)}"
    if life.num_asked > 1:
        yield f"its record was written {life.num_asked} times: Redis had lost its data"
    for attempt in life.attempts:
        yield from _attempt(attempt)
    if life.ended_at is not None and all(each.ended_as != life.state for each in life.attempts):
        yield f"ended at {clock(life.ended_at)}: {reason(life.cause, life.detail)}"
    yield from _cost(life)
    yield from _elsewhere(life)


def _elsewhere(life: TrialLife) -> Iterator[str]:
    """Where more is told of it, and what this release does not know."""
    if life.has_printed:
        yield f"what it printed: trialfleet logs {life.study} {life.trial}"
    for event in life.unknown:
        told = ", ".join(f"{name}={value}" for name, value in event.items())
        yield printable(f"told by a newer release: {told}")


def reason(cause: str | None, detail: str | None, count: int | None = None) -> str:
    """Why an attempt ended."""
    said = _CAUSES.get(cause or "", printable(cause or ""))
    if detail and cause not in _SAID:
        said = f"{said}: {printable(detail)}" if said else printable(detail)
    if count and cause in _COUNTED:
        said += f" ({_COUNTED[Cause(cause)]} {count})"
    return said


def place(host: str | None, pid: int | None, device: str | None) -> str:
    """Where something ran."""
    parts = [] if host is None else [f"on {printable(host)}"]
    if pid is not None:
        parts.append(f"in process {pid}")
    if device:
        slot = _CPU_SLOT.search(device)
        parts.append(f"on CPU slot {slot[1]}" if slot else f"on {printable(device)}")
    return " ".join(parts)


def clock(seconds: float) -> str:
    """A time of day here."""
    return dt.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def span(seconds: float) -> str:
    """How long something took."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def _state(life: TrialLife) -> str:
    latest = life.attempts[-1].number if life.attempts else 0
    attempts = f"{latest} attempts" if latest > 1 else ""
    if life.state == TrialState.QUEUED:
        return f"waits for attempt {latest + 1}" if latest else "waits to begin"
    if life.state == TrialState.PAUSED:
        return "is paused at a rung, and goes on if it is promoted"
    if life.state == TrialState.RUNNING:
        return f"runs, in attempt {latest}" if latest else "runs"
    value = "" if life.value is None else f" with {life.value:g}"
    return f"{life.state}{value}" + (f" after {attempts}" if attempts else "")


def _orders(life: TrialLife) -> Iterator[str]:
    if life.retries is not None:
        yield f"it tries trial {life.retries} again"
    elif life.is_ordered:
        yield "people asked for these parameters"
    for number in life.retried_as:
        yield f"it was tried again as trial {number}"


def _waited(life: TrialLife) -> str:
    begun = life.attempts[0].claimed_at if life.attempts else None
    if begun is None or life.asked_at is None or life.attempts[0].number != 1:
        return ""
    return f", begun {span(max(0.0, begun - life.asked_at))} later"


def _attempt(attempt: Attempt) -> Iterator[str]:
    where = place(attempt.host, attempt.pid, attempt.device)
    began = "began" if attempt.claimed_at is None else f"began at {clock(attempt.claimed_at)}"
    start = (
        "" if attempt.from_step is None else f", from the checkpoint of step {attempt.from_step}"
    )
    yield f"attempt {attempt.number} {began}{where and ' '}{where}{start}"
    if attempt.anew is not None:
        yield f"  it began anew: {printable(attempt.anew)}; {_ANEW_WAY}"
    if training := list(_training(attempt)):
        yield f"  it {', '.join(training)}"
    if attempt.ended_at is not None:
        yield f"  {_end(attempt)}"
    if attempt.last_lines:
        yield "  it printed last:"
        yield from (f"{PRINTED_MARK}{line[:_LINE]}" for line in attempt.last_lines)
    if attempt.ended_as == TrialState.QUEUED:
        yield f"  {_going_on(attempt)}"
    if attempt.promoted_at is not None:
        rung = printable(attempt.promoted or "")
        yield f"  promoted {rung}{rung and ' '}at {clock(attempt.promoted_at)}"


def _training(attempt: Attempt) -> Iterator[str]:
    if attempt.first_step_seconds is not None:
        yield f"made its first step after {span(attempt.first_step_seconds)}"
    if attempt.reported_step is not None and attempt.ended_at is None:
        value = "a value" if attempt.reported_value is None else f"{attempt.reported_value:g}"
        yield f"reported {value} at step {attempt.reported_step}"
    if attempt.checkpoint_step is not None:
        yield f"saved a checkpoint at step {attempt.checkpoint_step}"
    if attempt.last_step and attempt.ended_at is not None:
        yield f"got to step {attempt.last_step}"


def _end(attempt: Attempt) -> str:
    held = "" if attempt.held_seconds is None else f" after {span(attempt.held_seconds)}"
    why = reason(attempt.cause, attempt.detail, attempt.count)
    as_what = "" if attempt.ended_as == TrialState.QUEUED else f" {attempt.ended_as}"
    return f"ended{as_what}{held}" + (f": {why}" if why else "")


def _going_on(attempt: Attempt) -> str:
    wait = "" if not attempt.wait_seconds else f", for {span(attempt.wait_seconds)} at least"
    lost = ""
    if attempt.steps_lost:
        lost = f"; the next attempt made {_steps(attempt.steps_lost)} again"
    return f"the trial went back to the queue{wait}{lost}"


def _cost(life: TrialLife) -> Iterator[str]:
    """What slots it held, and for what; what it waited for, and held none."""
    cost = life.cost
    held = [
        (cost.useful_seconds, "trained to use"),
        (cost.warming_seconds, "until first steps"),
        (cost.lost_seconds, f"trained for nothing or again{_repeated(life)}"),
        (cost.running_seconds, "in the attempt that runs"),
    ]
    waited = [
        (cost.queued_seconds, "in the queue"),
        (cost.paused_seconds, "paused at rungs"),
    ]
    if uses := _shares(held):
        yield f"cost: {span(cost.slot_seconds)} of a slot: {uses}"
    if waits := _shares(waited):
        yield f"waited without a slot: {waits}"


def _shares(amounts: list[tuple[float, str]]) -> str:
    return ", ".join(f"{span(seconds)} {what}" for seconds, what in amounts if seconds >= _TOLD)


def _repeated(life: TrialLife) -> str:
    return f" ({_steps(life.steps_lost)} made twice)" if life.steps_lost else ""


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"
