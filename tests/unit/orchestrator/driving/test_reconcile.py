from __future__ import annotations

import pytest

from orchestrator.driving.reconcile import TOLD_AS, Instruction, reconcile
from workers.protocol.states import TrialState


@pytest.mark.parametrize(
    ("state", "waited", "instruction"),
    [
        (None, 0, Instruction.ENQUEUE),
        (TrialState.QUEUED, 10, Instruction.LEAVE),
        (TrialState.QUEUED, 60, Instruction.SEND_HINT),
        (TrialState.RUNNING, 9999, Instruction.LEAVE),
        (TrialState.COMPLETE, 9999, Instruction.LEAVE),
    ],
)
def test_storage_and_redis_are_brought_together(state, waited, instruction):
    found = reconcile(state, waited_seconds=waited, patience_seconds=60)
    assert found is instruction


@pytest.mark.parametrize(
    ("is_paused", "is_promoted", "is_inbox_empty", "instruction"),
    [
        (True, False, True, Instruction.LEAVE),
        (True, False, False, Instruction.LEAVE),
        (False, True, True, Instruction.SEND_ON),
        (False, True, False, Instruction.SEND_ON),
        (False, False, False, Instruction.LEAVE),
        (False, False, True, Instruction.NOTE_PAUSE),
    ],
)
def test_a_trial_that_redis_has_paused_is_where_the_storage_has_it(
    is_paused, is_promoted, is_inbox_empty, instruction
):
    found = reconcile(
        TrialState.PAUSED,
        waited_seconds=9999,
        patience_seconds=60,
        is_inbox_empty=is_inbox_empty,
        is_paused=is_paused,
        is_promoted=is_promoted,
    )
    assert found is instruction


def test_every_terminal_state_has_a_telling():
    assert set(TOLD_AS) == {state for state in TrialState if state.is_terminal}
