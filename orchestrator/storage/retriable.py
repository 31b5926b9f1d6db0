"""Which trials can be tried again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from optuna.trial import FrozenTrial

from orchestrator.storage.attributes import ATTR, RETRIES_ATTR
from orchestrator.storage.tally import state_of
from workers.protocol.states import TrialState

#: Those that are where no trials are named, and those that may be named.
_FAILED: Final = frozenset({TrialState.FAILED, TrialState.DEAD})
_NAMED: Final = _FAILED | {TrialState.CANCELLED}


def state_name(trial: FrozenTrial) -> str:
    """How a trial is, in the words of a status."""
    return state_of(trial).value.lower() if trial.state.is_finished() else "not over"


def retriable(
    trials: Sequence[FrozenTrial], numbers: Collection[int] | None = None
) -> list[FrozenTrial]:
    """The trials that failed or died; of those that are named, the cancelled ones, too."""
    states = _FAILED if numbers is None else _NAMED
    return [
        trial
        for trial in trials
        if trial.state.is_finished()
        and state_of(trial) in states
        and (numbers is None or trial.number in numbers)
    ]


def withdrawn(trials: Sequence[FrozenTrial]) -> list[int]:
    """The trials that were cancelled before anybody began them, and that nothing retries yet."""
    again = {trial.user_attrs.get(RETRIES_ATTR) for trial in trials}
    return [
        trial.number
        for trial in trials
        if trial.state.is_finished()
        and state_of(trial) is TrialState.CANCELLED
        and f"{ATTR}attempt" not in trial.user_attrs
        and trial.number not in again
    ]
