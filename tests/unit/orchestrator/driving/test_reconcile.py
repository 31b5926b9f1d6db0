from __future__ import annotations

import pytest

from orchestrator.driving.reconcile import TOLD_AS, Instruction, num_to_ask, reconcile
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
    ("asked", "in_flight", "slots", "may_start", "count"),
    [
        (0, 0, 2, True, 3),
        (3, 3, 2, True, 0),
        (3, 2, 2, True, 1),
        (9, 2, 2, True, 1),
        (10, 0, 2, True, 0),
        (0, 0, 0, True, 0),
        (0, 0, 2, False, 0),
        (8, 0, 4, True, 2),
        (5, 5, 2, True, 0),
    ],
)
def test_only_so_many_trials_are_asked_for_as_slots_can_take(
    asked, in_flight, slots, may_start, count
):
    found = num_to_ask(
        wanted=10, asked=asked, in_flight=in_flight, slots=slots, surplus=1, may_start=may_start
    )
    assert found == count


def test_every_terminal_state_has_a_telling():
    assert set(TOLD_AS) == {state for state in TrialState if state.is_terminal}
