"""Pure: the facts that are stored with a trial's end, under the names of the fleet's attributes.

Invariant: what is not known is left out, and nothing is stored in its place.
"""

from __future__ import annotations

from typing import Any

from orchestrator.storage.attributes import ATTR
from workers.coordination.trial_record import TrialRecord
from workers.protocol.messages import InboxEntry, Result
from workers.protocol.states import TrialState


def facts_of_end(
    entry: InboxEntry,
    state: TrialState,
    result: Result,
    *,
    result_error: str | None,
    code: str | None,
    has_rungs: bool,
) -> dict[str, Any]:
    """What an entry tells of a trial that has ended, or that is paused.

    Args:
        entry: Which tells it.
        state: How the trial stands.
        result: With what.
        result_error: What could not be kept of it.
        code: The name under which facts about what ran lie with the study.
        has_rungs: Whether trials are paused now and then: their time is that of all attempts.
    """
    busy_seconds = entry.held_ms / 1000 if has_rungs else result.busy_seconds
    return _known(
        state=state.value,
        attempt=entry.attempt,
        busy_seconds=round(busy_seconds, 3),
        slot_seconds=entry.held_ms / 1000 or None,
        gpu_seconds=entry.gpu_ms / 1000 or None,
        losses=entry.losses or None,
        requeued=entry.requeued or None,
        began_anew=entry.anew or None,
        error=_explain(entry, state, result),
        traceback=_traceback(state, result),
        result_error=result_error,
        reports_left_out=result.num_reports_left_out or None,
        code=code,
    )


def facts_of_attempts(record: TrialRecord) -> dict[str, Any]:
    """How the attempts of a trial ended that nobody tells of any more, by its record in Redis."""
    return _known(
        attempt=record.attempt or None,
        losses=record.losses or None,
        requeued=dict(record.requeued) or None,
        began_anew=record.num_anew or None,
    )


def _known(**facts: Any) -> dict[str, Any]:
    return {f"{ATTR}{name}": value for name, value in facts.items() if value is not None}


def _traceback(state: TrialState, result: Result) -> str | None:
    """What speaks against the objective; nothing where its process or its host was lost."""
    if state not in {TrialState.FAILED, TrialState.DEAD} or result.is_loss:
        return None
    return result.traceback or (result.error if state is TrialState.DEAD else None)


def _explain(entry: InboxEntry, state: TrialState, result: Result) -> str | None:
    if state is not TrialState.DEAD or not result.is_loss:
        return result.error
    count = "1 process" if entry.losses == 1 else f"{entry.losses} processes"
    return f"took {count} down: {result.error}"
