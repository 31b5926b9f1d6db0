"""Two releases side by side: what the one before sends is read, and it reads what it is sent.

Its classes are those of 0.1.0 as they were, and what it sealed lies here as it lay in Redis: who
changes how something is sealed, or what a message holds, breaks a fleet that is being upgraded.
"""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from workers.protocol.errors import UnknownMessageError
from workers.protocol.messages import End, InboxEntry, Result, RunTrial
from workers.protocol.seals import UNSEALED, Seal, TrialSeals
from workers.protocol.spec import StudySpec
from workers.protocol.states import TrialState

SEAL = Seal.of("the-secret-of-the-release-before")

#: Put by the release before: on the hint below, and on the end below.
HINT_SEAL = "3154d5827dab81290695a55d6c902a00c64c45217e4dc26122b6b115ea75342b"
TOLD_SEAL = "c2fcc703a6fa0364759073f8224ad5ff2d25dfe17ddc87121fdc086dc94091f2"

HINT = {"version": 1, "study": "s", "number": 3, "epoch": "e"}
END = {
    "kind": "terminal", "number": "3", "token": "1795000000000000", "attempt": "1",
    "subject": "COMPLETE", "body": '{"values": [0.5]}',
}  # fmt: skip


class HintBefore(BaseModel):
    """As a worker of 0.1.0 reads it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    study: str
    number: int
    epoch: str


class EntryBefore(BaseModel):
    """As an orchestrator of 0.1.0 reads it."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: Literal["report", "suggest", "terminal"]
    number: int
    token: int
    attempt: int
    subject: str
    body: str


class ResultBefore(BaseModel):
    """Likewise."""

    model_config = ConfigDict(extra="ignore")

    values: list[float] | None = None
    user_attrs: dict[str, Any] = {}
    constraints: dict[str, float] = {}
    error: str | None = None
    busy_seconds: float = 0.0


def test_a_worker_takes_the_hints_of_an_orchestrator_of_the_release_before():
    RunTrial.decode(HINT).check(UNSEALED)
    signed = {**HINT, "seal": HINT_SEAL}
    RunTrial.decode(signed).check(SEAL)
    RunTrial.decode({**signed, "more": []}).check(SEAL)


def test_a_worker_of_the_release_before_takes_a_hint_at_one_trial_and_no_later_one():
    hint = RunTrial(study="s", number=3, epoch="e")
    assert hint.encode() == HINT
    assert HintBefore.model_validate(hint.encode()).number == 3
    signed = hint.sealed(SEAL).encode()
    assert signed == {**HINT, "seal": HINT_SEAL}
    with pytest.raises(ValidationError):
        HintBefore.model_validate(RunTrial(**HINT, more=(4,)).encode())
    assert RunTrial.decode(RunTrial(**HINT, more=(4,)).encode()).more == (4,)


def test_an_orchestrator_takes_in_what_a_worker_of_the_release_before_tells():
    entry = InboxEntry.from_stream("1-0", END)
    found = entry.decode()
    assert isinstance(found, End)
    assert (found.state, found.result.values) == (TrialState.COMPLETE, [0.5])
    assert (entry.losses, entry.held_ms, entry.requeued) == (0, 0, {})
    told = ("terminal", "COMPLETE", str(END["body"]))
    trials = TrialSeals(SEAL, "s", "g", "w")
    assert trials.is_told(TOLD_SEAL, 3, 1795000000000000, *told)
    assert trials.told(3, 1795000000000000, *told) == TOLD_SEAL, "which it takes from this one"


def test_an_orchestrator_of_the_release_before_takes_in_what_a_worker_of_this_one_tells():
    result = Result(
        values=[0.5], code={"commit": "c"}, traceback="t", is_loss=True, num_reports_left_out=2
    )
    fields = {**END, "body": result.model_dump_json(), "seal": TOLD_SEAL, "held_ms": "7"}
    entry = EntryBefore.model_validate({"id": "1-0", **fields})
    assert ResultBefore.model_validate(json.loads(entry.body)).values == [0.5]


def test_what_only_a_later_release_reads_is_refused_with_the_order_of_an_upgrade():
    with pytest.raises(UnknownMessageError, match="workers up to it before orchestrators"):
        RunTrial.decode({**HINT, "version": 2})
    with pytest.raises(ValidationError, match="Extra inputs"):
        StudySpec.model_validate({"name": "s", "objective": "a:b", "setting_of_tomorrow": 1})
