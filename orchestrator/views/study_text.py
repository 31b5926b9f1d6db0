"""A study and its trials in words: the pieces of which views are made.

Invariant: each piece is one line, and of what users named a terminal acts on nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from orchestrator.status import EndedTrial, StudyStatus
from orchestrator.views.ps import printable
from workers.protocol.states import Wish

#: What people have asked for, where that ends a study.
_ENDED: Final = {Wish.STOP: "it was stopped", Wish.CANCEL: "it was cancelled"}


def state_text(status: StudyStatus) -> str:
    """What a study does, and what it was asked to do where that takes a while."""
    if status.wish is Wish.STOP and not status.is_over:
        return f"{status.state}, stopping"
    return status.state.value


def asked_end(status: StudyStatus) -> str | None:
    """That people have ended a study which has trials left, and what has it go on; else None."""
    asked = _ENDED.get(status.wish)
    if asked is None or status.ended_by is not None or status.num_ended >= status.wanted:
        return None
    resume = f"`trialfleet resume {status.study}` lets it go on"
    return f"no further trial begins: {asked}; {resume}"


def slots_text(status: StudyStatus) -> str:
    """How many slots a study has."""
    return f"{status.slots} slot{'' if status.slots == 1 else 's'}"


def count_texts(status: StudyStatus) -> list[str]:
    """How many trials are in each state, and what else of them is counted."""
    counted = [f"{count} {name}" for name, count in status.trials.items() if count]
    counted = counted or ["no trials yet"]
    if status.infeasible:
        counted[-1] += f" ({status.infeasible} infeasible)"
    if status.out_of_memory:
        counted.append(f"{status.out_of_memory} out of memory")
    if status.losses:
        counted.append(count_losses(status.losses))
    return counted


def headline(status: StudyStatus) -> str:
    """One line on the study as a whole."""
    counted = ", ".join(f"{count} {name}" for name, count in status.trials.items() if count)
    losses = f"  {count_losses(status.losses)}" if status.losses else ""
    memory = f"  {status.out_of_memory} out of memory" if status.out_of_memory else ""
    infeasible = f" ({status.infeasible} infeasible)" if status.infeasible else ""
    return (
        f"[bold]{status.study}[/bold] {state_text(status)}  {slots_text(status)}"
        f"  {status.wall_seconds:.0f} s"
        f"  {counted or 'no trials yet'}{infeasible}{memory}{losses}"
    )


def ended_line(trial: EndedTrial, status: StudyStatus) -> str:
    """One line on a trial that has ended."""
    value = format_values(trial.value, trial.values, status)
    attempts = f", attempt {trial.attempts}" if trial.attempts > 1 else ""
    losses = f", {count_losses(trial.losses)}" if trial.losses else ""
    line = f"trial {trial.number} {trial.state} {value} ({trial.seconds:.1f} s{attempts}{losses})"
    if trial.error is not None:
        return f"{line} {printable(trial.error.splitlines()[0])}"
    return f"{line}  {format_params(trial.params)}"


def count_losses(count: int) -> str:
    """Processes that were lost."""
    return "1 process lost" if count == 1 else f"{count} processes lost"


def format_values(
    value: float | None, values: list[float] | None, status: StudyStatus, *, named: bool = True
) -> str:
    """The values of a trial, with the names of their metrics where the study has them."""
    found = values if value is None else [value]
    if not found:
        return ""
    names = status.metrics if named and len(status.metrics) == len(found) else []
    texts = [f"{each:.6g}" for each in found]
    return (
        ", ".join(f"{name}={text}" for name, text in zip(names, texts, strict=True))
        if names
        else ", ".join(texts)
    )


def format_params(params: Mapping[str, Any]) -> str:
    """Parameters on one line."""
    return printable(" ".join(f"{name}={short(value)}" for name, value in params.items()))


def short(value: Any) -> str:
    """A parameter's value."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def of_front(status: StudyStatus) -> str:
    """What else there is to say of the best trial."""
    if status.front is None:
        return ""
    return f"  (in the first value; {status.front} on the Pareto front)"


def trials_per_hour(status: StudyStatus) -> float | None:
    """How many trials have ended an hour, since the study began; None before the first."""
    if not status.num_ended or status.wall_seconds <= 0:
        return None
    return status.num_ended * 3600 / status.wall_seconds


def seconds_left(status: StudyStatus) -> float | None:
    """How long the study goes on if it does as it did so far; None where nobody can tell."""
    rate = trials_per_hour(status)
    if rate is None or status.is_over or status.ended_by is not None:
        return None
    return (status.wanted - status.num_ended) * 3600 / rate
