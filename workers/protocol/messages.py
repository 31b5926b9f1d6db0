"""The versioned messages: a Celery hint that a trial may be claimed, and the inbox entries.

A hint carries no authority. Only a claim, answered by Redis, lets a process run a trial.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from workers.protocol.errors import UnknownMessageError
from workers.protocol.plain import describe_error

#: The Celery name of the one task. The orchestrator enqueues by this name and imports no task.
RUN_TRIAL: Final = "workers.tasks.run_trial"

#: Raised whenever a field changes its meaning; a worker refuses what it does not know.
MESSAGE_VERSION: Final = 1


class RunTrial(BaseModel):
    """The hint: trial `number` of `study` may be claimed, under `epoch`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = MESSAGE_VERSION
    study: str
    number: int
    epoch: str

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
                " machine"
            ) from error


class InboxEntry(BaseModel):
    """One entry of a study's inbox stream, as the orchestrator reads it."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: Literal["report", "suggest", "terminal"]
    number: int
    token: int
    attempt: int
    #: report: the step; suggest: the parameter's name; terminal: the state
    subject: str
    #: JSON; report: the value; suggest: the distribution; terminal: values, attributes, error
    body: str

    @classmethod
    def from_stream(cls, entry_id: str, fields: Mapping[str, str]) -> InboxEntry:
        """Build an entry from what XREADGROUP returns."""
        return cls.model_validate({"id": entry_id, **fields})

    @property
    def payload(self) -> Any:
        """The decoded body."""
        return json.loads(self.body) if self.body else None


class Result(BaseModel):
    """The payload of a terminal entry."""

    # pydantic's default turns infinity into null
    model_config = ConfigDict(extra="ignore", ser_json_inf_nan="constants")

    values: list[float] | None = None
    user_attrs: dict[str, Any] = {}
    constraints: dict[str, float] = {}
    error: str | None = None
    #: Why the attributes are not there, where they could not be sent or stored.
    result_error: str | None = None
    #: Seconds this attempt held a slot, from the claim to the commit.
    busy_seconds: float = 0.0

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
