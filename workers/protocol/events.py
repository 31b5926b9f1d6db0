"""The fleet's events: what became of a trial, a study or a process, each told by what made it true.

An event is one line of JSON, below 300 bytes. It lies in a stream in Redis while it is news, and in
a file beside the study's results for good, in the same text; its place in the stream is its id, and
tells the time by the server's clock.

Invariant: a line of any release is read: a kind, a cause or a field that this one does not know is
shown as it stands. `VERSION` is raised where a field changes its meaning.
"""

from __future__ import annotations

import datetime as dt
import json
from enum import StrEnum
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workers.passwords import hide
from workers.protocol.plain import strict_json

#: Of the fields as they are read below; an event that names none has 1.
VERSION: Final = 1

#: Bytes of the text that tells more of an event.
MAX_DETAIL: Final = 120

#: Trials, steps, times in ms: those fit, and whole ones of JSON have no bound of their own.
_MAX_NUMBER: Final = 2**63


class EventKind(StrEnum):
    """What happened; `...` of the fields that tell it, beside the time."""

    ASKED = "asked"
    """A trial may be claimed from now on: trial, step (where it goes on from a checkpoint)."""
    CLAIMED = "claimed"
    """An attempt began: trial, attempt, token, process, device, step (that it goes on from)."""
    FIRST_STEP = "first_step"
    """It made its first training step: trial, attempt, after_ms. Told with a beat."""
    REPORTED = "reported"
    """It reported a value: trial, attempt, step, value. Of each second, the first."""
    CHECKPOINT = "checkpoint"
    """It saved one: trial, attempt, step. Of each second, the first."""
    BEGAN_ANEW = "began_anew"
    """Its attempt goes on from no checkpoint, though there is one: trial, attempt, step (of that),
    detail (why)."""
    REQUEUED = "requeued"
    """An attempt ended, and another is to come: trial, attempt, cause, held_ms, step, wait_ms,
    after_ms; where a lease ran out, its process."""
    PAUSED = "paused"
    """It gave its slot back at a rung: trial, attempt, value, held_ms, step, after_ms, detail (the
    rung)."""
    PROMOTED = "promoted"
    """It goes on from there: trial, attempt, detail (the rung that it goes on to)."""
    ENDED = "ended"
    """A trial ended for good: trial, attempt, state, value, cause, held_ms, step,
    after_ms."""

    SUBMITTED = "submitted"
    """A study was handed in, or again."""
    DRIVEN = "driven"
    """An orchestrator began to drive it: process, generation."""
    WISHED = "wished"
    """People want something else of it: wish."""
    EXTENDED = "extended"
    """Its specification was changed."""
    WIDENED = "widened"
    """It goes on in a wider space: detail (the name under which it is kept as it was)."""
    ORDERED = "ordered"
    """People ordered trials: count."""
    TURNED = "turned"
    """It is in another state: state, detail (what ended it)."""
    STALLED = "stalled"
    """It does not get on: detail."""

    BORN = "born"
    """A process began: process, role, device, parent."""
    DRAINED = "drained"
    """A worker takes no more trials: process."""
    LEFT = "left"
    """A process ended by itself: process."""
    DIED = "died"
    """A process was found dead by its host's worker: process, study, trial."""


class Cause(StrEnum):
    """Why an attempt ended, where that was not its result."""

    FAILED = "failed"
    """The objective raised something."""
    OUT_OF_MEMORY = "out_of_memory"
    """There was not as much as it asked for."""
    BROKE = "broke"
    """A CUDA error broke its process."""
    NO_PROGRESS = "no_progress"
    """It made no step for as long as the study's `progress_timeout`."""
    DIED = "died"
    """Its process ended under it."""
    LOADER_DIED = "loader_died"
    """A loader process of it was killed: detail (which one, by what)."""
    LEASE_LOST = "lease_lost"
    """Nobody renewed its lease: the worker, its host or the network is gone."""
    DRAINED = "drained"
    """Its worker shut down."""
    PAUSED = "paused"
    """Its study was paused."""
    HANDED_OVER = "handed_over"
    """Another process was to run it."""
    LACKING = "lacking"
    """It waits for something that was not there."""
    REDIS_AWAY = "redis_away"
    """Redis was away for longer than the lease."""
    CANCELLED = "cancelled"
    """Its study was cancelled while it ran."""
    TIMED_OUT = "timed_out"
    """It held slots for as long as it may."""
    WITHDRAWN = "withdrawn"
    """Nobody is to begin it."""
    SETTLED = "settled"
    """The storage had it as ended."""


class Event(BaseModel):
    """One event, as it is read."""

    model_config = ConfigDict(frozen=True, extra="allow", coerce_numbers_to_str=True)

    id: str = Field(pattern=r"^\d{1,14}-\d{1,20}$")
    kind: EventKind | str = Field(union_mode="left_to_right")
    version: int = 1
    study: str | None = None
    """Where it was read; of a process's death, what it worked on."""
    generation: str | None = None
    trial: int | None = Field(default=None, ge=0, lt=_MAX_NUMBER)
    attempt: int | None = None
    token: int | None = None
    process: str | None = None
    """Its identity: host, boot, pid and start time."""
    parent: int | None = None
    role: str | None = None
    device: str | None = None
    state: str | None = None
    cause: Cause | str | None = Field(default=None, union_mode="left_to_right")
    value: float | None = None
    step: int | None = None
    after_ms: int | None = None
    """How long after the claim the first step began."""
    held_ms: int | None = None
    """How long the attempt held its slot."""
    wait_ms: int | None = None
    """How long nobody may claim the trial."""
    count: int | None = None
    """Of failures or losses so far, this one included; or of orders."""
    wish: str | None = None
    detail: str | None = None

    @property
    def place(self) -> tuple[int, int]:
        """Where it stands among all of its stream."""
        return place_of(self.id)

    @property
    def seconds(self) -> float:
        """When it happened, by the clock of Redis, since 1970."""
        return self.place[0] / 1000

    @property
    def time(self) -> dt.datetime:
        """The same, in UTC."""
        return dt.datetime.fromtimestamp(self.seconds, dt.UTC)

    @property
    def is_known(self) -> bool:
        """Whether this release knows its kind."""
        return isinstance(self.kind, EventKind)

    @property
    def host(self) -> str | None:
        """Of its process."""
        return host_of(self.process)

    @property
    def pid(self) -> int | None:
        """Of its process."""
        parts = [] if self.process is None else self.process.rsplit(":", 3)
        return int(parts[2]) if len(parts) == 4 and parts[2].isdecimal() else None

    def document(self) -> dict[str, Any]:
        """Its fields for a program, strict JSON, the time as text among them."""
        fields = self.model_dump(mode="json", exclude_none=True, exclude={"version"})
        told = self.time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        document: Any = strict_json({"id": fields.pop("id"), "time": told, **fields})
        return dict(document)


def host_of(process: str | None) -> str | None:
    """The host of a process, by its identity."""
    return None if process is None else process.rsplit(":", 3)[0]


def place_of(event_id: str) -> tuple[int, int]:
    """The two numbers of an id, by which events are in order."""
    milliseconds, _, number = event_id.partition("-")
    return int(milliseconds), int(number or 0)


def encode(kind: EventKind, **fields: str | float | None) -> str:
    """The text of an event, as the scripts write it; fields without a value are left out."""
    told = {name: value for name, value in fields.items() if value is not None and value != ""}
    return json.dumps({"kind": kind.value, **told}, separators=(",", ":"), ensure_ascii=False)


def line_of(event_id: str, text: str) -> str:
    """The line of a file for an event: its text with the id before it."""
    return f'{{"id":"{event_id}",{text[1:]}\n'


def is_one_line(text: str) -> bool:
    """Whether a text may be an event's: what else lies in a stream gets into no file."""
    return text.startswith('{"') and text.endswith("}") and "\n" not in text


def decode(line: str | bytes, **found: str | None) -> Event | None:
    """Read a line; None if it is none.

    Args:
        line: What `line_of` made.
        found: Where it was found: study, generation.
    """
    try:
        fields = json.loads(line)
        # a process's death names the study that it worked on
        return Event.model_validate({**found, **fields})
    except (ValidationError, ValueError, TypeError, RecursionError):
        return None


def brief(text: str | None) -> str:
    """A text short enough for an event: its first line, cut between characters, no password."""
    if not text:
        return ""
    line = " ".join(hide(text.strip().split("\n", 1)[0]).split())
    raw = line.encode("utf-8", "backslashreplace")
    if len(raw) <= MAX_DETAIL:
        return raw.decode()
    return raw[: MAX_DETAIL - 3].decode(errors="ignore") + "..."
