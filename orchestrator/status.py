"""The status of a study: one document, shown everywhere.

It is what `status --json` and `run --json` print, what `watch` draws, and what the orchestrator
publishes for those that cannot read the storage. `status_building` makes it.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

from pydantic import BaseModel

from workers.protocol.spec import Direction
from workers.protocol.states import OVER_STATES, StudyState, Wish

#: Of what `trials` counts, what has not ended.
_OPEN: Final = ("queued", "running", "paused")


class EndedTrial(BaseModel):
    """A trial that has ended."""

    number: int
    state: str
    value: float | None = None
    """Of a study with one direction."""
    values: list[float] | None = None
    """Of a study with several."""
    params: dict[str, Any] = {}
    attempts: int = 1
    losses: int = 0
    """Processes that it took down, or lost with their hosts."""
    seconds: float = 0.0
    """From the claim of the last attempt to its commit."""
    error: str | None = None


class RunningTrial(BaseModel):
    """A trial that a worker holds."""

    number: int
    attempt: int
    losses: int = 0
    """Processes that it took down so far, or lost with their hosts."""
    step: int
    value: float | None = None
    """The last reported one."""
    params: dict[str, Any] = {}
    owner: str | None = None
    activity: str | None = None
    """What it does before or between steps, such as reading data, and how far that is."""
    slot: str | None = None
    """Its GPU, or its CPU slot, as people are shown it."""
    claimed_at_ms: int = 0
    """When this attempt began, on the clock of Redis, in ms since 1970."""
    lease_until_ms: int = 0
    """When its lease ends unless it is renewed, on the same clock."""
    step_at_ms: int = 0
    """When it last told its step; 0 before."""
    total_steps: int | None = None
    """How many steps it is to make in all, where it tells that."""
    steps_per_second: float | None = None
    """Between its last two renewals."""
    examples_per_second: float | None = None
    memory_bytes: int | None = None
    """What its process uses, as of its last beat: of its GPU where it has one, else of its host."""


class RetriedTrial(BaseModel):
    """A trial that waits for, or runs in, a further attempt, and why the one before ended."""

    number: int
    attempt: int
    """The one that waits or runs."""
    cause: str
    """Such as `drained`, `died` (its process), `lease_lost` (its host), `no_progress`, `failed`."""
    host: str | None = None
    """Where it ended."""
    process: str | None = None
    """Likewise: host, boot, pid and start time."""
    detail: str | None = None
    retry_ms: int | None = None
    """When it can be claimed, on the clock of Redis, in ms since 1970; None while it runs."""


class WaitingTrial(BaseModel):
    """A trial that was given back, because something that it needs is not there for now."""

    number: int
    waits_for: str
    """What that is, and why it is not there."""
    retry_ms: int
    """When it is tried again, on the clock of Redis, in ms since 1970."""


class Best(BaseModel):
    """The best trial that violates no constraint; of several directions, in the first."""

    number: int
    value: float | None = None
    values: list[float] | None = None
    params: dict[str, Any]


class Budget(BaseModel):
    """How much of a budget is used up, and how much there is, both in its unit."""

    used: float
    allowed: float


class StudyStatus(BaseModel):
    """A study at one moment."""

    study: str
    state: StudyState
    wish: Wish = Wish.RUN
    """What people want of it; `state` tells how far that is done."""
    objective: str
    metrics: list[str]
    directions: list[Direction]
    wanted: int
    """Trials that the study is to run in all, with those of given parameters."""
    given: int = 0
    """Of them, those with given parameters: they come on top of the study's `trials`."""
    trials: dict[str, int]
    best: Best | None = None
    wall_seconds: float
    """How long the study has been driven."""
    busy_seconds: float
    """Training time of all ended and paused trials, summed over slots."""
    budgets: dict[str, Budget] = {}
    """By name (`trials`, `wall_seconds`, `slot_hours`, `gpu_hours`), those that the study has."""
    ended_by: str | None = None
    """Why no further trial is started, if that is for a budget, a target or failures."""
    limit: str | None = None
    """The study's setting that `ended_by` is of, such as `stop.target` or `timeout`."""
    is_exhausted: bool = False
    """Whether its sampler has nothing more to suggest, such as a grid that was gone through."""
    traceback: str | None = None
    """That of the failures in a row that ended the study."""
    out_of_memory: int = 0
    """Pruned trials that ran out of memory."""
    losses: int = 0
    """Processes that its trials took down, or lost with their hosts."""
    requeued: dict[str, int] = {}
    """By cause, as in `retried`: how many attempts ended so, with another one to come."""
    began_anew: int = 0
    """Attempts that went on from no checkpoint though the trial had one: from where they ran, it
    could not be reached. A shared `FLEET_HOME`, or `FLEET_STORE`, makes it be found."""
    retried: list[RetriedTrial] = []
    """Trials that wait for, or run in, a further attempt, and why the last one ended."""
    slots: int
    """Pool processes that take trials from the study's queue now."""
    put_aside: list[str] = []
    """Those that read the queue and take none: their GPUs, each with the reason."""
    top: list[EndedTrial] = []
    """The best complete trials that violate no constraint, the best first; of a study with several
    directions, of its Pareto front, in the order of the first value."""
    front: int | None = None
    """Of a study with several directions: how many trials are on its Pareto front."""
    infeasible: int = 0
    """Complete trials that violate a constraint."""
    recent: list[EndedTrial] = []
    """The latest ended trials, in the order of their end."""
    history: list[float] = []
    """Of a study with one direction, the best value so far after each of its complete trials, in
    the order of their end; of many, some of them, the last one included."""
    running: list[RunningTrial] = []
    waiting: list[WaitingTrial] = []
    """Trials that were given back uncounted, and what each waits for."""
    results: str | None = None
    """Where trials leave their results."""
    former: str | None = None
    """The study of the storage that holds its trials as they were in a narrower space."""
    end_problem: str | None = None
    """Why the study's `on_end` failed."""
    other_code: list[str] = []
    """Workers whose file of the objective is not the submitter's, and what follows."""
    set_aside: list[str] = []
    """Why entries of the study's inbox could not be taken in, the latest last."""
    as_of: float | None = None
    """When this was so, in seconds since 1970; None before an orchestrator has looked at it."""
    waits_for: list[str] = []
    """What its trials and the fleet lack for it to go on, each with what to do about it."""
    stalled: str | None = None
    """Why the orchestrator cannot go on with the study for now; it tries again."""

    @property
    def num_ended(self) -> int:
        """Trials in a terminal state."""
        return sum(count for name, count in self.trials.items() if name not in _OPEN)

    @property
    def no_best(self) -> str:
        """Why no trial is the best, where none is."""
        if self.infeasible:
            return "no complete trial keeps to the constraints"
        return "no trial is complete"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen unless somebody extends the study."""
        return self.state in OVER_STATES


class UnreadableStudy(BaseModel):
    """A study of which nothing can be told, in the place of its status."""

    study: str
    state: Literal["unreadable"] = "unreadable"
    reason: str


class FormerStudy(BaseModel):
    """A study's trials as they were in a narrower space, kept beside it in its storage."""

    study: str
    state: Literal["former"] = "former"
    of: str
    """The study that goes on in a wider space."""


class UnreadableRecord(NamedTuple):
    """The record of a process that tells nothing to this release."""

    record: str
    """Whose it is, as far as its key says."""
    reason: str
