"""Why trials did not end well, by kind, with the last traceback of each: pure.

Invariant: each trial that failed is in one group; a long text keeps its end.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from optuna.trial import FrozenTrial
from pydantic import BaseModel

from orchestrator.storage.attributes import ATTR
from orchestrator.storage.failure_kinds import kind_of
from orchestrator.storage.tally import ran_out_of_memory, state_of
from workers.protocol.states import TrialState

#: Groups that are told one by one; the rarest are told together.
MAX_GROUPS: Final = 12

#: Characters of a traceback: its end says what went wrong.
MAX_TEXT: Final = 8000

#: Numbers of trials of one group.
_MAX_NUMBERS: Final = 20

_STATES: Final = frozenset({TrialState.FAILED, TrialState.DEAD})


class Failure(BaseModel):
    """Trials that failed alike."""

    what: str
    """The first line of what went wrong, last."""
    state: str
    count: int
    trials: list[int]
    """The first of them."""
    text: str
    """The last traceback, or what is known in its place."""


def failures(trials: Iterable[FrozenTrial]) -> list[Failure]:
    """The kinds of failures, the most frequent first."""
    groups: dict[tuple[str, str], list[FrozenTrial]] = {}
    for trial in trials:
        state = _state(trial)
        if state is not None:
            groups.setdefault((state, kind_of(_text(trial))), []).append(trial)
    ordered = sorted(groups.items(), key=lambda each: (-len(each[1]), each[1][0].number))
    told = [_told(state, found) for (state, _), found in ordered[:MAX_GROUPS]]
    rest = [trial for _, found in ordered[MAX_GROUPS:] for trial in found]
    if rest:
        other = _told("failed", rest)
        told.append(other.model_copy(update={"what": "other failures", "state": "failed"}))
    return told


def _state(trial: FrozenTrial) -> str | None:
    if not trial.state.is_finished():
        return None
    if ran_out_of_memory(trial):
        return "out of memory"
    state = state_of(trial)
    return state.value.lower() if state in _STATES else None


def _text(trial: FrozenTrial) -> str:
    told = trial.user_attrs.get(f"{ATTR}traceback") or trial.user_attrs.get(f"{ATTR}error")
    return str(told or "nothing is known of why")


def _told(state: str, found: list[FrozenTrial]) -> Failure:
    text = _text(found[-1]).strip()
    error = str(found[-1].user_attrs.get(f"{ATTR}error") or text.splitlines()[-1]).strip()
    return Failure(
        what=(error.splitlines() or [""])[0][:300],
        state=state,
        count=len(found),
        trials=[trial.number for trial in found[:_MAX_NUMBERS]],
        text=text if len(text) <= MAX_TEXT else f"...\n{text[-MAX_TEXT:]}",
    )
