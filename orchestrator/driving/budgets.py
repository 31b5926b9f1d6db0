"""What a study may use up, and what it may find, before no further trial is started: pure rules.

Invariant: a rule sees a snapshot and the specification alone, so that it says the same after a
restart, and something else as soon as a budget is extended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from workers.protocol.spec import StudySpec

_HOUR: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the rules look at."""

    wall_seconds: float = 0.0
    slot_seconds: float = 0.0
    """How long its trials have held slots, over all their attempts."""
    gpu_seconds: float = 0.0
    """Likewise, slots with a GPU."""
    best: tuple[int, float] | None = None
    """Of a study with one direction: the number and the value of its best feasible trial."""
    num_since_better: int = 0
    """Trials that ended with a value since one was better than all before."""
    num_alike: int = 0
    """Trials that failed last, in a row, all in the same way."""


class Reached(NamedTuple):
    """A limit that was reached: no further trial is to be started."""

    setting: str
    """That of the study that sets it."""
    reason: str
    """Why, as the beginning of a sentence."""


def reached(spec: StudySpec, seen: Snapshot) -> Reached | None:
    """The limit that ends a study; None to go on."""
    found = ((setting, rule(spec, seen)) for setting, rule in _RULES.items())
    return next((Reached(setting, reason) for setting, reason in found if reason), None)


def spares_given(spec: StudySpec, seen: Snapshot) -> bool:
    """Whether trials whose parameters people gave are run all the same: they want just these.

    Past a target or without progress they are; not without budget, nor where all fail alike.
    """
    return not any(rule(spec, seen) for name, rule in _RULES.items() if name not in _FOUND_ENOUGH)


def is_failing_alike(spec: StudySpec, seen: Snapshot) -> bool:
    """Whether so many trials failed in a row, and in the same way, that the next would, too."""
    most = spec.stop.equal_failures
    return bool(most) and seen.num_alike >= most


def _time(spec: StudySpec, seen: Snapshot) -> str | None:
    is_up = spec.timeout is not None and seen.wall_seconds >= spec.timeout
    return "the study's time was up" if is_up else None


def _slot_hours(spec: StudySpec, seen: Snapshot) -> str | None:
    most = spec.budget.slot_hours
    is_up = most is not None and seen.slot_seconds >= most * _HOUR
    return f"the study's {most:g} slot-hours were used up" if is_up else None


def _gpu_hours(spec: StudySpec, seen: Snapshot) -> str | None:
    most = spec.budget.gpu_hours
    is_up = most is not None and seen.gpu_seconds >= most * _HOUR
    return f"the study's {most:g} GPU-hours were used up" if is_up else None


def _target(spec: StudySpec, seen: Snapshot) -> str | None:
    target = spec.stop.target
    if target is None or seen.best is None:
        return None
    number, value = seen.best
    sign = 1 if spec.all_directions[0] == "maximize" else -1
    if sign * value < sign * target:
        return None
    return f"trial {number} reached the study's target ({value:g}; wanted {target:g})"


def _patience(spec: StudySpec, seen: Snapshot) -> str | None:
    most = spec.stop.patience
    if most is None or seen.num_since_better < most:
        return None
    return f"no trial was better in the last {seen.num_since_better}"


def _alike(spec: StudySpec, seen: Snapshot) -> str | None:
    if not is_failing_alike(spec, seen):
        return None
    times = "trial" if seen.num_alike == 1 else f"{seen.num_alike} trials in a row"
    return f"{times} failed with the same traceback"


_RULES: Final[Mapping[str, Callable[[StudySpec, Snapshot], str | None]]] = {
    "stop.equal_failures": _alike,
    "stop.target": _target,
    "stop.patience": _patience,
    "timeout": _time,
    "budget.slot_hours": _slot_hours,
    "budget.gpu_hours": _gpu_hours,
}

#: Of those, the ones by which the sampler's part is done.
_FOUND_ENOUGH: Final = frozenset({"stop.target", "stop.patience"})
