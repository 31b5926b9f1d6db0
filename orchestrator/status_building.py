"""Makes the status of a study, from the storage's trials, their leases and the processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from optuna.trial import FrozenTrial

from orchestrator.status import (
    Best,
    Budget,
    EndedTrial,
    RetriedTrial,
    RunningTrial,
    StudyStatus,
    WaitingTrial,
)
from orchestrator.storage.attributes import (
    ATTR,
    ENDED_BY_ATTR,
    EXHAUSTED_ATTR,
    NUM_POINTS_ATTR,
    SPEC_ATTR,
    WISH_ATTR,
)
from orchestrator.storage.budget_uses import uses
from orchestrator.storage.opening import load_readonly, storage_url
from orchestrator.storage.tally import NUM_TOP, Ends, Tally, busy_seconds, state_of
from workers.coordination.leases import TrialLeases
from workers.coordination.trial_record import TrialRecord
from workers.processes.memory import UsedMemory
from workers.processes.registry import ProcessEntry
from workers.protocol.errors import InvalidInputError, StorageUnreadableError
from workers.protocol.events import host_of
from workers.protocol.pace import Pace
from workers.protocol.plain import describe_error
from workers.protocol.spec import Direction, StudySpec
from workers.protocol.states import StudyState, TrialState, Wish
from workers.settings import Settings

#: The states that a status counts trials by.
_COUNTED: Final = (
    "queued", "running", "paused", "complete", "pruned", "failed", "dead", "cancelled",
)  # fmt: skip


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
    limit: str | None = None
    """The study's setting that this is of."""
    num_points: float = math.inf
    """How many trials its sampler has at most."""
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
    held, queued = ({}, {}) if leases is None or not tally.open else _records(leases)
    running, waiting = _running(held, around.processes), _waiting(queued)
    ends = _ends(tally, held | queued)
    no_more = around.starts_no_more(spec)
    return StudyStatus(
        study=spec.name,
        state=study_state(spec, tally, starts_no_more=no_more, wish=around.wish),
        objective=spec.objective,
        metrics=spec.metrics,
        directions=spec.all_directions,
        wanted=_num_wanted(spec, tally, around),
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


def stored_status(name: str, settings: Settings) -> StudyStatus:
    """A study's status from its storage alone; open trials count as queued.

    Raises:
        InvalidInputError: The storage does not know the study.
        StorageUnreadableError: What it has of it cannot be read.
    """
    study = load_readonly(storage_url(settings, name), name)
    text = study.user_attrs.get(SPEC_ATTR)
    if text is None:
        raise InvalidInputError(f"study {name!r} was not made by trialfleet; read it with Optuna")
    try:
        spec = StudySpec.read(text)
    except (ValueError, TypeError) as error:
        raise StorageUnreadableError(
            f"study {name!r}: its specification, as its results have it, cannot be read:"
            f" {describe_error(error, 200)}"
        ) from error
    tally = Tally(spec.all_directions, study.get_trials(deepcopy=False))
    results = str(settings.home / "studies" / name / "trials")
    found = build_status(spec, tally, _stored_circumstances(spec, tally, study.user_attrs, results))
    if found.is_over:
        return found
    nobody = (
        "no fleet runs here: go on with `trialfleet run`, or with `trialfleet serve` and workers"
    )
    return found.model_copy(update={"waits_for": [nobody]})


def _stored_circumstances(
    spec: StudySpec, tally: Tally, attrs: Mapping[str, Any], results: str
) -> Circumstances:
    """What the attributes of a study tell beside its trials."""
    wall_seconds = float(attrs.get(f"{ATTR}wall_seconds", 0.0))
    num_points = float(attrs.get(NUM_POINTS_ATTR, math.inf))
    ended_by = attrs.get(ENDED_BY_ATTR) or {}
    return Circumstances(
        wall_seconds=wall_seconds,
        results=results,
        is_exhausted=bool(attrs.get(EXHAUSTED_ATTR)) or tally.num_sampled >= num_points,
        num_points=num_points,
        wish=Wish(attrs.get(WISH_ATTR, Wish.RUN)),
        ended_by=ended_by.get("reason"),
        limit=ended_by.get("setting"),
        traceback=ended_by.get("traceback"),
        budgets=uses(
            spec,
            tally.num_trials,
            wall_seconds=wall_seconds,
            slot_seconds=tally.slot_seconds + sum(tally.paused.values()),
            gpu_seconds=tally.gpu_seconds,
        ),
    )


def as_extended(shown: StudyStatus, spec: StudySpec) -> dict[str, Any]:
    """What a status has otherwise once its study was extended, before anybody looks at it again.

    Args:
        shown: The study as it was.
        spec: As it is wanted now.
    """
    used = {name: each.used for name, each in shown.budgets.items()}
    now = uses(spec, 0, wall_seconds=0.0, slot_seconds=0.0, gpu_seconds=0.0)
    budgets = {
        name: Budget(used=used[name], allowed=allowed)
        for name, (_, allowed) in now.items()
        if name in used
    }
    changed: dict[str, Any] = {"is_exhausted": False, "budgets": budgets}
    trials = shown.budgets.get("trials")
    # else the points of a grid say how many there are to be
    if trials is not None and shown.wanted >= shown.given + trials.allowed:
        changed["wanted"] = max(sum(shown.trials.values()), shown.given + spec.trials)
    return changed


def _num_wanted(spec: StudySpec, tally: Tally, around: Circumstances) -> int:
    """How many trials there are to be in all: what people gave, and what the sampler has."""
    if around.is_exhausted:
        return tally.num_trials
    return tally.num_wanted(min(spec.trials, around.num_points))


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
        "limit": around.limit,
        "is_exhausted": around.is_exhausted,
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
    at_rungs = [ends for number, ends in tally.ends_at_rungs.items() if number not in open_]
    records = [
        Ends(record.losses, record.requeued, record.num_anew)
        for number, record in open_.items()
        if number in tally.open  # else the storage has it as ended, and the tally its ends
    ]
    return Ends.total([tally.ends, *at_rungs, *records])


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
