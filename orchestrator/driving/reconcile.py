"""A trial's life as seen by the orchestrator: pure functions from what is known to what to do.

Two truths meet here: the storage says how a trial ended, its record in Redis says who may run it.
Where they differ, these functions say what brings them together.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

import optuna

from workers.protocol.states import TrialState

#: How each terminal state is told to Optuna. What did not end by itself is a failure there: a
#: trial left RUNNING would repel the sampler for ever.
TOLD_AS: Final = {
    TrialState.COMPLETE: optuna.trial.TrialState.COMPLETE,
    TrialState.PRUNED: optuna.trial.TrialState.PRUNED,
    TrialState.FAILED: optuna.trial.TrialState.FAIL,
    TrialState.DEAD: optuna.trial.TrialState.FAIL,
    TrialState.CANCELLED: optuna.trial.TrialState.FAIL,
}


class Instruction(Enum):
    """What the orchestrator does about a trial."""

    LEAVE = auto()
    """Nothing: it is where it should be."""
    ENQUEUE = auto()
    """Write its record and send a hint: Redis does not know it."""
    SEND_HINT = auto()
    """Send a hint: it waits, and the one before may be lost."""
    TELL_LOST = auto()
    """End it as failed: Redis has it as ended, and of its end nothing is left to read."""
    SEND_ON = auto()
    """Send it to its next rung: it was promoted, and Redis has it paused still."""
    NOTE_PAUSE = auto()
    """Take it as paused: Redis has it so, and of its pause nothing is left to read."""


def reconcile(
    state: TrialState | None,
    *,
    waited_seconds: float = 0.0,
    patience_seconds: float,
    is_inbox_empty: bool = False,
    is_paused: bool = False,
    is_promoted: bool = False,
) -> Instruction:
    """What brings the storage and Redis together for a trial that has not ended in the storage.

    Args:
        state: Its state in Redis, or None if there is no record.
        waited_seconds: How long it has been queued.
        patience_seconds: After which a queued trial is announced again.
        is_inbox_empty: Whether, since that state was read, nothing was left to be told.
        is_paused: Whether the storage has it paused at a rung.
        is_promoted: Whether the storage has it promoted beyond the rung that Redis has it at.
    """
    if state is None:
        return Instruction.ENQUEUE
    if state is TrialState.QUEUED and waited_seconds >= patience_seconds:
        return Instruction.SEND_HINT
    if state.is_terminal and is_inbox_empty:
        return Instruction.TELL_LOST
    if state is TrialState.PAUSED and is_promoted:
        return Instruction.SEND_ON
    if state is TrialState.PAUSED and is_inbox_empty and not is_paused:
        return Instruction.NOTE_PAUSE
    return Instruction.LEAVE
