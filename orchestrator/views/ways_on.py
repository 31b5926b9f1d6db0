"""What can be done about a study that is over, or of which nothing more begins, by what ended it.

Invariant: whatever is advised helps: it is not refused, and trials begin by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from orchestrator.extension import value_of
from orchestrator.status import Budget, StudyStatus
from workers.protocol.spec import StudySpec
from workers.protocol.states import StudyState

#: The limits by name, as far as they are budgets, and the budget of a status that tells their use.
BUDGET_OF: Final = {
    "timeout": "wall_seconds",
    "budget.slot_hours": "slot_hours",
    "budget.gpu_hours": "gpu_hours",
}


def ways_on(status: StudyStatus, command: str) -> str:
    """What has more trials of a study begin, as the end of a sentence.

    Args:
        status: The study.
        command: What takes `--trials` and `--set`, such as `trialfleet extend NAME`.
    """
    if status.limit is not None:
        return _past_limit(status, status.limit, command)
    given = _run_given(status)
    if status.is_exhausted:
        return f"its sampler has no further point to suggest: widen its space, or {given}"
    return f"`{command} {_more_trials(status)}` has it run more; {given}"


def begins_more(
    status: StudyStatus, known: StudySpec, spec: StudySpec, withdrawn: Sequence[int]
) -> bool:
    """Whether trials of a study begin once it is run again.

    Args:
        status: As it was left.
        known: By which it has come to that.
        spec: By which it is to be run.
        withdrawn: Trials that were cancelled before they began, and are to be run after all.
    """
    if not status.is_over:
        return True  # what waits there is run, or told why not
    if still_ends(status, known, spec):
        return False
    if withdrawn:
        return True
    return not status.is_exhausted and status.num_ended - status.given < spec.trials


def say_over(status: StudyStatus) -> str:
    """How a study ended that is run again, and what can be done now."""
    name = status.study
    how = "was finished before" if status.state is StudyState.FINISHED else f"is {status.state}"
    why = f" ({status.ended_by})" if status.ended_by else ""
    return (
        f"study {name!r} {how}{why}: {ways_on(status, 'trialfleet run STUDY')}; `trialfleet best"
        f" {name}` and `export {name}` take home what it came to"
    )


def used_up(status: StudyStatus, spec: StudySpec) -> str | None:
    """The setting of a budget that is used up: nothing begins, also not what people give.

    Args:
        status: The study.
        spec: By which it is to go on.
    """
    return next((each for each in BUDGET_OF if _is_used_up(status, spec, each)), None)


def raised_budgets(before: StudySpec, after: StudySpec) -> list[str]:
    """The settings of those budgets that are more in one specification than in another."""
    values = {each: (value_of(before, each), value_of(after, each)) for each in BUDGET_OF}
    return [each for each, (old, new) in values.items() if None not in {old, new} and new > old]


def still_ends(status: StudyStatus, before: StudySpec, after: StudySpec) -> bool:
    """Whether what has ended a study, or is about to, would do so by another specification, too.

    Args:
        status: The study.
        before: By which it has come to that.
        after: By which it is to go on.
    """
    if used_up(status, after) is not None:
        return True
    if status.limit not in {"stop.target", "stop.patience"}:
        return False  # people go on with it having mended what failed
    allowed = value_of(after, status.limit)
    return allowed is not None and allowed == value_of(before, status.limit)


def say_still_ends(
    status: StudyStatus, before: StudySpec, after: StudySpec, command: str
) -> str | None:
    """Why nothing begins by another specification, and what helps; None if something does.

    Args:
        status: The study.
        before: By which it has come to that.
        after: By which it is to go on.
        command: As for `ways_on`.
    """
    if not still_ends(status, before, after):
        return None
    limit = used_up(status, after) or status.limit
    why = status.ended_by if limit == status.limit else f"its {limit} is used up"
    return f"since {why}: {ways_on(status.model_copy(update={'limit': limit}), command)}"


def _is_used_up(status: StudyStatus, spec: StudySpec, setting: str) -> bool:
    allowed = value_of(spec, setting)
    if allowed is None:
        return False
    budget = _budget(status, setting)
    was_reached = status.limit == setting and allowed <= budget.allowed
    return was_reached or bool(budget.used >= allowed)


def _budget(status: StudyStatus, setting: str) -> Budget:
    """A budget by its setting; of one that the study had not, at least so much is used."""
    known = status.budgets.get(BUDGET_OF[setting])
    if known is not None:
        return known
    used = {"timeout": status.wall_seconds, "budget.slot_hours": status.busy_seconds / 3600}
    return Budget(used=used.get(setting, 0.0), allowed=0.0)


def _past_limit(status: StudyStatus, limit: str, command: str) -> str:
    if limit == "stop.equal_failures":
        return f"mend what fails, then {_again(status, command)}"
    others = ""
    if status.is_exhausted:
        others = "; its sampler has no further point to suggest: widen its space, too"
    elif _has_none_left(status):
        command = f"{command} {_more_trials(status)}"
    if limit == "stop.target":
        return (
            f"`{command} --set stop.target=VALUE` aims higher, and with `null` for no target at"
            f" all{others}; {_run_given(status)}"
        )
    if limit == "stop.patience":
        return (
            f"`{command} --set stop.patience=N` waits for longer, and with `null` for all trials"
            f"{others}; {_run_given(status)}"
        )
    return f"`{command} --set {limit}={_doubled(status, limit)}` raises that{others}"


def _again(status: StudyStatus, command: str) -> str:
    """What has trials begin of a study that equal failures ended."""
    is_extended = "extend" in command
    if not _has_none_left(status):
        return f"`trialfleet resume {status.study}`" if is_extended else f"`{command}`"
    steps = [f"`trialfleet retry {status.study}`"]
    if status.wish.is_end:  # orders are refused until that is revoked
        steps.insert(0, f"`trialfleet resume {status.study}`")
    return " and ".join(steps if is_extended else [*steps, f"`{command}`"])


def _has_none_left(status: StudyStatus) -> bool:
    """Whether as many trials have ended as the study is to run."""
    return status.num_ended >= status.wanted


def _more_trials(status: StudyStatus) -> str:
    return f"--trials {2 * (status.wanted - status.given)}"


def _run_given(status: StudyStatus) -> str:
    return f"`trialfleet enqueue {status.study}` and `retry` run trials of yours"


def _doubled(status: StudyStatus, limit: str) -> str:
    budget = _budget(status, limit)
    return f"{2 * max(budget.allowed, budget.used):g}" + ("s" if limit == "timeout" else "")
