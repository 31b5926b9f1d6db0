"""The states of a trial and of a study, and the commands that reach a running trial."""

from __future__ import annotations

from enum import StrEnum


class TrialState(StrEnum):
    """Where a trial is; the five terminal states absorb."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAILED = "FAILED"
    DEAD = "DEAD"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing can happen to the trial any more."""
        return self not in {TrialState.QUEUED, TrialState.RUNNING}


class Charge(StrEnum):
    """What an attempt counts as that did not end its trial; the name of the field that counts."""

    FAILURE = "failures"
    """The objective's own fault: an exception, an exit, a training that stands still."""
    LOSS = "losses"
    """The process or its host ended under it: killed, out of memory, broken by CUDA."""


class StudyState(StrEnum):
    """What `trialfleet status` calls a study."""

    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Command(StrEnum):
    """What a holder is told when it renews its lease."""

    NONE = "NONE"
    PRUNE = "PRUNE"
    DRAIN = "DRAIN"
    CANCEL = "CANCEL"


class ProcessKind(StrEnum):
    """The role of a registered process."""

    ORCHESTRATOR = "orchestrator"
    MAIN = "main"
    TRIAL = "trial"
    LOADER = "loader"
