"""The versioned messages: a Celery hint that a trial may be claimed, and the inbox entries.

A hint carries no authority. Only a claim, answered by Redis, lets a process run a trial.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from workers.protocol.errors import UnknownMessageError, UnreadableEntryError, UnsealedError
from workers.protocol.plain import describe_error, plain_text
from workers.protocol.seals import WAY_OUT, Seal
from workers.protocol.states import TrialState

#: The Celery name of the one task. The orchestrator enqueues by this name and imports no task.
RUN_TRIAL: Final = "workers.tasks.run_trial"

#: Raised whenever a field changes its meaning; a worker refuses what it does not know.
MESSAGE_VERSION: Final = 1


class RunTrial(BaseModel):
    """The hint: trial `number` of `study`, and `more`, may be claimed, under `epoch`.

    One message for several short trials costs Celery what one for one trial does. A worker of
    a release that knows of no `more` refuses it, and the orchestrator announces its trials again,
    one by one.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = MESSAGE_VERSION
    study: str
    number: int
    epoch: str
    more: tuple[int, ...] = ()
    """Trials of the same study that are to be run by the same slot, one after the other."""
    seal: str = ""

    def sealed(self, seal: Seal) -> RunTrial:
        """This hint, signed by the fleet's secret if there is one."""
        return self.model_copy(update={"seal": seal.put("hint", *self._parts)})

    def check(self, seal: Seal) -> None:
        """Refuse a hint that no member of the fleet sent, and one that needs a secret to follow.

        Raises:
            UnsealedError: None did, or what is told without a secret would not be taken in.
        """
        if self.seal and not seal:
            raise UnsealedError(
                f"study {self.study!r} is of a fleet with a secret, and there is no FLEET_SECRET"
                f" here: {WAY_OUT}"
            )
        what = f"the message for trial {self.number} of study {self.study!r}"
        seal.check(self.seal, "hint", *self._parts, what=what, way=WAY_OUT)

    def apart(self, seal: Seal) -> list[RunTrial]:
        """A hint for each of its trials, signed anew.

        Raises:
            UnsealedError: It is not signed by a member of the fleet, and so is not taken apart.
        """
        if not self.more:
            return [self]
        self.check(seal)
        each = self.model_copy(update={"more": ()})
        numbers = (self.number, *self.more)
        return [each.model_copy(update={"number": number}).sealed(seal) for number in numbers]

    @property
    def _parts(self) -> tuple[str | int, ...]:
        return self.study, self.epoch, self.number, *self.more

    def encode(self) -> dict[str, Any]:
        """The body of a message: what is not there is left out, so that earlier workers read it."""
        return {"version": self.version, **self.model_dump(exclude_defaults=True)}

    @classmethod
    def decode(cls, body: Mapping[str, Any]) -> RunTrial:
        """Read a hint.

        Raises:
            UnknownMessageError: The version or the fields are not this release's.
        """
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            raise UnknownMessageError(
                f"message version {body.get('version')!r} is not readable by this worker, which"
                f" reads version {MESSAGE_VERSION}: run the same release of trialfleet on every"
                " machine, and bring workers up to it before orchestrators"
            ) from error


class Drawn(BaseModel):
    """A parameter's value, and what it was drawn from."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    #: Optuna's own JSON.
    distribution: str
    #: As the storage has it.
    value: Any
    #: Whether the sampler drew it together with others.
    is_joint: bool = False


class Result(BaseModel):
    """The payload of a terminal entry."""

    # pydantic's default turns infinity into null
    model_config = ConfigDict(extra="ignore", ser_json_inf_nan="constants")

    values: list[float] | None = None
    #: Parameters that were drawn before the trial began, that its objective asked for, and that
    #: were not told before.
    params: dict[str, Drawn] = {}
    user_attrs: dict[str, Any] = {}
    constraints: dict[str, float] = {}
    error: str | None = None
    #: Where it was raised, for people; its end, if it is long.
    traceback: str | None = None
    #: Tells failures with the same traceback from others.
    fingerprint: str | None = None
    #: Whether the process, or its host, ended under the attempt.
    is_loss: bool = False
    #: Why the attributes are not there, where they could not be sent or stored.
    result_error: str | None = None
    #: Seconds this attempt held a slot, from the claim to the commit.
    busy_seconds: float = 0.0
    #: The code that ran, with packages and host; empty where no attempt ended by itself.
    code: dict[str, Any] = {}
    #: Reports of this attempt that are in no storage: the inbox was full of unread ones.
    num_reports_left_out: int = 0

    def sendable(self) -> Result:
        """This result, without its attributes if these cannot be sent: the values count most."""
        try:
            self.model_dump_json()
        except (ValueError, TypeError) as error:  # pydantic's own are of the first kind
            return self.without_attributes(error)
        return self

    def without_attributes(self, reason: Exception) -> Result:
        """This result, with the reason for which its attributes are left out."""
        told = f"attributes left out: {describe_error(reason, 500)}"
        return self.model_copy(update={"user_attrs": {}, "result_error": told})


class Report(BaseModel):
    """What a trial reported of its training; its value may be infinite or NaN."""

    model_config = ConfigDict(frozen=True)

    step: int = Field(ge=0, lt=2**53)
    value: float


class Question(BaseModel):
    """A parameter that a trial asks for, with the distribution that its objective gave."""

    model_config = ConfigDict(frozen=True)

    name: str
    #: Optuna's own JSON.
    distribution: str


class Taken(BaseModel):
    """Parameters that were drawn before the trial began, and that its objective has asked for."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    params: dict[str, Drawn]


class Pause(BaseModel):
    """At which rung a trial was paused, and what it has come to until there."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    rung: int = Field(ge=0)
    #: What it reported there; the report itself may have found the inbox full.
    step: int = Field(ge=0, lt=2**53)
    value: float
    result: Result = Result()


class End(BaseModel):
    """How a trial ended."""

    model_config = ConfigDict(frozen=True)

    state: TrialState
    result: Result

    @field_validator("state")
    @classmethod
    def _is_an_end(cls, value: TrialState) -> TrialState:
        if not value.is_terminal:
            raise ValueError(f"{value} is no end")
        return value


class InboxEntry(BaseModel):
    """One entry of a study's inbox stream, as the orchestrator reads it."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: Literal["report", "suggest", "taken", "pause", "terminal"]
    number: int = Field(ge=0)
    token: int
    attempt: int
    #: report: the step; suggest: the parameter's name; taken: nothing; pause: the rung; terminal:
    #: the state
    subject: str
    #: JSON; report: the value; suggest: the distribution; taken: the parameters; pause: the last
    #: report, attributes; terminal: values, attributes, error
    body: str
    #: Of a pause or an end: how many processes the trial has lost, this one included.
    losses: int = 0
    #: Likewise: how long all attempts together held a slot, and one with a GPU.
    held_ms: int = 0
    gpu_ms: int = 0
    #: Likewise: how many of them ended by which cause, with another one to come.
    requeued: dict[str, int] = {}
    #: Likewise: how many went on from no checkpoint though there was one.
    anew: int = 0
    seal: str = ""

    @field_validator("requeued", mode="before")
    @classmethod
    def _read_counts(cls, value: Any) -> Any:
        return read_counts(value) if isinstance(value, str) else value

    @classmethod
    def from_stream(cls, entry_id: str, fields: Mapping[str, str]) -> InboxEntry:
        """Build an entry from what XREADGROUP returns."""
        return cls.model_validate({"id": entry_id, **fields})

    @property
    def payload(self) -> Any:
        """The decoded body."""
        return json.loads(self.body) if self.body else None

    def decode(self) -> Report | Question | Taken | Pause | End:
        """What the entry tells.

        Raises:
            UnreadableEntryError: It is none that a worker of this release writes.
        """
        try:
            if self.kind == "report":
                return Report(step=int(self.subject), value=self.payload)
            if self.kind == "suggest":
                return Question(name=self.subject, distribution=self.body)
            if self.kind == "taken":
                return Taken(params=self.payload)
            if self.kind == "pause":
                return Pause(rung=int(self.subject), **self.payload)
            return End(state=TrialState(self.subject), result=Result.model_validate(self.payload))
        except (ValueError, TypeError, RecursionError) as error:  # pydantic's, json's: the first
            raise UnreadableEntryError(
                f"{self.kind} of trial {self.number}: {_explain(error)}"
            ) from error


def read_counts(text: str) -> dict[str, int]:
    """Counts by cause, as scripts write them; what is none is left out: an end is worth more."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    items = found.items() if isinstance(found, dict) else ()
    return {name: count for name, count in items if type(count) is int and count > 0}


@dataclass(frozen=True, slots=True)
class BrokenEntry:
    """An entry of an inbox that is none: its fields as they were found, and what is wrong."""

    id: str
    fields: Mapping[str, str]
    reason: str

    @property
    def number(self) -> int | None:
        """The trial that it seems to be of."""
        text = self.fields.get("number", "")
        return int(text) if text.isdecimal() and len(text) < 10 else None


def read_entry(entry_id: str, fields: Mapping[str, str]) -> InboxEntry | BrokenEntry:
    """An entry as XREADGROUP returns it, whatever is in it."""
    try:
        return InboxEntry.from_stream(entry_id, fields)
    except ValidationError as error:
        return BrokenEntry(entry_id, fields, _explain(error))


def _explain(error: Exception) -> str:
    """The first thing that is wrong, in one line."""
    if not isinstance(error, ValidationError):
        return describe_error(error, 300)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    return plain_text(f"{name} = {first['input']!r:.100}: {first['msg']}", 300)
