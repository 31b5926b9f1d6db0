"""The states of a trial and of a study, and the commands that reach a running trial."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

#: The constraint that a trial violates which ran out of memory.
OUT_OF_MEMORY: Final = "oom"


class TrialState(StrEnum):
    """Where a trial is; the five terminal states absorb."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    """At a rung, with its checkpoint: it goes on if it is promoted."""
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAILED = "FAILED"
    DEAD = "DEAD"
    CANCELLED = "CANCELLED"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing can happen to the trial any more."""
        return self not in {TrialState.QUEUED, TrialState.RUNNING, TrialState.PAUSED}


class Charge(StrEnum):
    """What an attempt counts as that did not end its trial; the name of the field that counts."""

    FAILURE = "failures"
    """The objective's own fault: an exception, an exit, a training that stands still."""
    LOSS = "losses"
    """The process, one of its loaders or its host ended under it: killed, broken by CUDA."""


class StudyState(StrEnum):
    """What `trialfleet status` calls a study."""

    RUNNING = "running"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    """It was cancelled, and some of its trials have not ended yet."""
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


#: Those of a study of which nothing more will happen unless somebody extends it.
OVER_STATES: Final = (StudyState.FINISHED, StudyState.FAILED, StudyState.CANCELLED)


class Wish(StrEnum):
    """What people want of a study; kept in Redis, and with its results."""

    RUN = "run"
    PAUSE = "pause"
    """Nothing is begun; what runs goes back to the queue, or to its end if it never asks."""
    PAUSE_NOW = "pause_now"
    """Likewise, and what never asks is ended after a grace, to begin again later."""
    STOP = "stop"
    """No further trial is begun; what has begun goes to its end."""
    CANCEL = "cancel"
    """All trials end, those that run as CANCELLED."""

    @property
    def is_pause(self) -> bool:
        """Whether the study stands still, and can go on."""
        return self in {Wish.PAUSE, Wish.PAUSE_NOW}

    @property
    def is_end(self) -> bool:
        """Whether no trial is begun any more."""
        return self in {Wish.STOP, Wish.CANCEL}


class Command(StrEnum):
    """What a holder is told when it renews its lease: of its trial, or of the whole study."""

    NONE = "NONE"
    PRUNE = "PRUNE"
    DRAIN = "DRAIN"
    PAUSE = "PAUSE"
    PAUSE_NOW = "PAUSE_NOW"
    CANCEL = "CANCEL"
    TIME_OUT = "TIME_OUT"
    """Not sent: by its holder's own clock, the trial's time is up."""

    @classmethod
    def read(cls, text: str | None) -> Command:
        """What the server answered; what only a newer release knows asks nothing of this one."""
        return cls(text) if text in set(cls) else cls.NONE

    @property
    def is_pressing(self) -> bool:
        """Whether an objective that does not obey is ended after a grace."""
        return self in {Command.PAUSE_NOW, Command.CANCEL, Command.TIME_OUT}


class ProcessKind(StrEnum):
    """The role of a registered process."""

    ORCHESTRATOR = "orchestrator"
    MAIN = "main"
    TRIAL = "trial"
    LOADER = "loader"
