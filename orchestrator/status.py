"""The status of a study: one document, made from the storage and the leases, shown everywhere.

It is what `status --json` and `run --json` print, what `watch` draws, and what the orchestrator
publishes for those that cannot read the storage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from optuna.trial import FrozenTrial
from pydantic import BaseModel

from orchestrator.storage.attributes import ATTR
from orchestrator.storage.tally import NUM_TOP, Ends, Tally, busy_seconds, state_of
from workers.coordination.leases import TrialLeases
from workers.coordination.trial_record import TrialRecord
from workers.processes.memory import UsedMemory
from workers.processes.registry import ProcessEntry
from workers.protocol.events import host_of
from workers.protocol.pace import Pace
from workers.protocol.spec import Direction, StudySpec
from workers.protocol.states import OVER_STATES, StudyState, TrialState, Wish

_COUNTED: Final = (
    "queued", "running", "paused", "complete", "pruned", "failed", "dead", "cancelled",
)  # fmt: skip

#: Of these, what has not ended.
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


def study_state(spec: StudySpec, tally: Tally, *, starts_no_more: bool, wish: Wish) -> StudyState:
    """Whether a study runs or how it ended, by its trials."""
    may_start = not starts_no_more and not wish.is_end
    if tally.open or (tally.num_sampled < spec.trials and may_start):
        return unfinished_state(wish)
    if wish is Wish.CANCEL:
        return StudyState.CANCELLED
    return StudyState.FINISHED if tally.num_complete else StudyState.FAILED


def unfinished_state(wish: Wish) -> StudyState:
    """The state of a study that is not over."""
    if wish is Wish.CANCEL:
        return StudyState.CANCELLING
    return StudyState.PAUSED if wish.is_pause else StudyState.RUNNING


@dataclass(frozen=True)
class Circumstances:
    """What a status tells of a study beside its trials."""

    wall_seconds: float = 0.0
    """How long it has been driven."""
    slots: int = 0
    """Pool processes that take trials from its queue."""
    put_aside: Sequence[str] = ()
    """Those that read the queue and take none, with the reasons."""
    results: str | None = None
    """Where its trials leave their results."""
    wish: Wish = Wish.RUN
    """What people want of it."""
    is_exhausted: bool = False
    """Whether its sampler has nothing more to suggest."""
    ended_by: str | None = None
    """Why no further trial is started, beside that."""
    traceback: str | None = None
    """That of the failures that ended it."""
    budgets: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """How much of each is used, and how much there is."""
    set_aside: Sequence[str] = ()
    """Why entries of its inbox could not be taken in."""
    processes: Mapping[str, ProcessEntry] = field(default_factory=dict)
    """Those that run trials, by identity."""

    def starts_no_more(self, spec: StudySpec) -> bool:
        """Whether no further trial of it is started, whatever people want."""
        is_out_of_time = spec.timeout is not None and self.wall_seconds >= spec.timeout
        return is_out_of_time or self.is_exhausted or self.ended_by is not None


def build_status(
    spec: StudySpec,
    tally: Tally,
    around: Circumstances | None = None,
    leases: TrialLeases | None = None,
) -> StudyStatus:
    """Put a status together.

    Args:
        spec: The study.
        tally: Its trials, as the storage has them, summed up.
        around: What else there is to tell.
        leases: Tells running trials from queued ones; without, all open ones count as queued.
    """
    around = around or Circumstances()
    held, queued = ({}, {}) if leases is None else _records(leases)
    running, waiting = _running(held, around.processes), _waiting(queued)
    ends = _ends(tally, held | queued)
    no_more = around.starts_no_more(spec)
    return StudyStatus(
        study=spec.name,
        state=study_state(spec, tally, starts_no_more=no_more, wish=around.wish),
        objective=spec.objective,
        metrics=spec.metrics,
        directions=spec.all_directions,
        wanted=spec.trials + tally.num_given,
        trials=_count(tally, running),
        losses=ends.losses,
        requeued=dict(ends.requeued),
        began_anew=ends.num_anew,
        retried=_retried(held, queued),
        running=running,
        waiting=waiting,
        waits_for=_reasons(waiting),
        **_of_trials(tally, spec.all_directions),
        **_of_circumstances(around),
    )


def _of_trials(tally: Tally, directions: Sequence[Direction]) -> dict[str, Any]:
    """What a status tells of trials that have ended."""
    return {
        "given": tally.num_given,
        "best": _best(tally.best),
        "front": len(tally.best) if len(directions) > 1 else None,
        "infeasible": tally.num_infeasible,
        "out_of_memory": tally.num_out_of_memory,
        "history": tally.best_so_far.points,
        "busy_seconds": round(tally.used_seconds, 3),
        "top": [_describe(trial) for trial in tally.best[:NUM_TOP]],
        "recent": [_describe(trial) for trial in tally.recent],
    }


def _of_circumstances(around: Circumstances) -> dict[str, Any]:
    budgets = around.budgets.items()
    return {
        "wish": around.wish,
        "wall_seconds": round(around.wall_seconds, 3),
        "budgets": {name: Budget(used=used, allowed=allowed) for name, (used, allowed) in budgets},
        "ended_by": around.ended_by,
        "traceback": around.traceback,
        "slots": around.slots,
        "put_aside": list(around.put_aside),
        "results": around.results,
        "set_aside": list(around.set_aside),
    }


def _count(tally: Tally, running: Sequence[RunningTrial]) -> dict[str, int]:
    """How many trials are in each state."""
    counts = {state.value.lower(): count for state, count in tally.ended.items()}
    num_paused = len(tally.paused.keys() - {trial.number for trial in running})
    counts["running"] = len(running)
    counts["paused"] = num_paused
    counts["queued"] = max(0, len(tally.open) - len(running) - num_paused)
    return {name: counts.get(name, 0) for name in _COUNTED}


def _records(leases: TrialLeases) -> tuple[dict[int, TrialRecord], dict[int, TrialRecord]]:
    """The records of trials that run, and of those that wait; never many: few wait for a slot."""
    held, queued = sorted(leases.running()), sorted(leases.queued())
    found = leases.records([*held, *queued])
    by_state = {
        state: {number: record for number, record in found.items() if record.state is state}
        for state in (TrialState.RUNNING, TrialState.QUEUED)
    }
    return by_state[TrialState.RUNNING], by_state[TrialState.QUEUED]


def _ends(tally: Tally, open_: Mapping[int, TrialRecord]) -> Ends:
    """How attempts ended that were not the last, of all trials; of open ones, by their records."""
    at_rungs = [trial for number, trial in tally.at_rungs.items() if number not in open_]
    records = [
        Ends(record.losses, record.requeued, record.num_anew)
        for number, record in open_.items()
        if number in tally.open  # else the storage has it as ended, and the tally its ends
    ]
    return Ends.total([tally.ends, *map(Ends.of, at_rungs), *records])


def _retried(
    held: Mapping[int, TrialRecord], queued: Mapping[int, TrialRecord]
) -> list[RetriedTrial]:
    return [
        RetriedTrial(
            number=number,
            attempt=record.attempt + (number in queued),
            cause=record.last_end.cause,
            host=host_of(record.last_end.process),
            process=record.last_end.process,
            detail=record.last_end.detail,
            retry_ms=record.not_before_ms if number in queued else None,
        )
        for number, record in sorted({**held, **queued}.items())
        if record.last_end is not None
    ]


def _running(
    held: Mapping[int, TrialRecord], processes: Mapping[str, ProcessEntry]
) -> list[RunningTrial]:
    return [
        _describe_running(number, record, processes.get(record.owner or ""))
        for number, record in held.items()
    ]


def _describe_running(
    number: int, record: TrialRecord, process: ProcessEntry | None
) -> RunningTrial:
    pace = record.pace or Pace()
    memory = UsedMemory() if process is None else process.memory
    return RunningTrial(
        number=number,
        attempt=record.attempt,
        losses=record.losses,
        step=max(record.step, record.reported_step or 0),
        value=record.reported_value,
        params=record.params,
        owner=record.owner,
        activity=None if process is None else process.activity,
        slot=None if process is None else process.gpu,
        claimed_at_ms=record.claimed_at_ms,
        lease_until_ms=record.deadline_ms,
        step_at_ms=record.step_at_ms,
        total_steps=pace.total,
        steps_per_second=pace.steps,
        examples_per_second=pace.examples,
        memory_bytes=memory.gpu or memory.host or None,
    )


def _reasons(waiting: Sequence[WaitingTrial]) -> list[str]:
    """Each thing that trials wait for, with their numbers."""
    numbers: dict[str, list[str]] = {}
    for trial in waiting:
        numbers.setdefault(trial.waits_for, []).append(str(trial.number))
    return [
        f"trial{'' if len(each) == 1 else 's'} {', '.join(each)}, given back and tried again later:"
        f" {reason}"
        for reason, each in numbers.items()
    ]


def _waiting(queued: Mapping[int, TrialRecord]) -> list[WaitingTrial]:
    """The trials that wait for something, each with what."""
    return [
        WaitingTrial(number=number, waits_for=record.waits_for, retry_ms=record.not_before_ms)
        for number, record in queued.items()
        if record.waits_for is not None
    ]


def _best(top: Sequence[FrozenTrial]) -> Best | None:
    if not top:
        return None
    return Best(number=top[0].number, params=top[0].params, **_values(top[0]))


def _describe(trial: FrozenTrial) -> EndedTrial:
    attrs: Mapping[str, Any] = trial.user_attrs
    return EndedTrial(
        number=trial.number,
        state=state_of(trial).value.lower(),
        params=trial.params,
        attempts=attrs.get(f"{ATTR}attempt", 1),
        losses=attrs.get(f"{ATTR}losses", 0),
        seconds=busy_seconds(trial),
        error=attrs.get(f"{ATTR}error"),
        **_values(trial),
    )


def _values(trial: FrozenTrial) -> dict[str, Any]:
    values = trial.values or []
    return {"value": values[0]} if len(values) == 1 else {"values": values or None}
