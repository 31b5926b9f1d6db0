"""What was asked of a study, and what came out, in sentences: pure.

Invariant: what is not known is not said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from orchestrator.status import StudyStatus
from orchestrator.views.explain import reason as cause_text
from orchestrator.views.explain import span
from orchestrator.views.slot_time import SlotTime
from workers.protocol.spec import StudySpec

#: Parameters that are named.
_MAX_NAMES: Final = 12

#: A budget or a stop of a study, and how it is told.
_BUDGETS: Final = (("slot_hours", "slot hours"), ("gpu_hours", "GPU hours"))


def asked(spec: StudySpec, metrics: Sequence[str]) -> Iterator[str]:
    """What was asked for."""
    aims = (f"{way} {name}" for way, name in zip(spec.all_directions, metrics, strict=False))
    yield f"{_count(spec.trials, 'trial')} of {spec.objective}, to {_listed(list(aims))}."
    yield (
        f"Parameters are drawn by {_named(spec.sampler.model_dump(mode='json'))}; trials are pruned"
        f" by {_named(spec.pruner.model_dump(mode='json'))}."
    )
    if spec.space:
        yield f"The space has {_count(len(spec.space), 'parameter')}: {_some(list(spec.space))}."
    else:
        yield "The objective asks for its parameters by itself."
    if limits := list(_limits(spec)):
        yield f"It may take {_listed(limits)}."


def outcome(status: StudyStatus, metrics: Sequence[str], spent: SlotTime) -> Iterator[str]:
    """What came out."""
    counts = [f"{count} {name}" for name, count in status.trials.items() if count]
    ended = f"{status.num_ended:,} of {_count(status.wanted, 'trial')} ended"
    yield f"The study is {status.state}: {ended}" + (f" ({', '.join(counts)})." if counts else ".")
    if status.ended_by:
        yield f"It was ended by {status.ended_by}."
    yield from _best(status, metrics)
    if status.wall_seconds:
        yield (
            f"It was driven for {span(status.wall_seconds)}; its trials held slots for"
            f" {span(status.busy_seconds)}."
        )
    if (share := spent.trained_share) is not None:
        yield f"{share:.0%} of the time of its slots was training that counts."
    yield from _trouble(status)


def _best(status: StudyStatus, metrics: Sequence[str]) -> Iterator[str]:
    if status.best is None:
        yield f"{status.no_best.capitalize()}{'' if status.is_over else ' yet'}."
        return
    best: Sequence[float | None] = status.best.values or [status.best.value]
    named = zip(metrics, best, strict=False)
    told = _listed([f"{name} {value:.6g}" for name, value in named if value is not None])
    if status.front is not None:
        yield f"{_count(status.front, 'trial')} on the Pareto front; the first has {told}."
    else:
        yield f"Trial {status.best.number} is the best, with {told}."


def _trouble(status: StudyStatus) -> Iterator[str]:
    if status.losses:
        yield f"{_count(status.losses, 'process', 'processes')} lost under its trials."
    for cause, count in sorted(status.requeued.items(), key=lambda each: -each[1]):
        ended = f"{_count(count, 'attempt')} ended with another one to come"
        yield f"{ended}: {cause_text(cause, None)}."
    if status.began_anew:
        yield (
            f"{_count(status.began_anew, 'attempt')} began anew, since the trial's checkpoint could"
            " not be reached."
        )
    if status.infeasible:
        yield f"{_count(status.infeasible, 'complete trial')} violated a constraint."
    if status.stalled:
        yield f"It does not get on: {status.stalled}"


def _limits(spec: StudySpec) -> Iterator[str]:
    if spec.timeout is not None:
        yield f"{span(spec.timeout)} in all"
    if spec.trial_timeout is not None:
        yield f"{span(spec.trial_timeout)} a trial"
    for name, said in _BUDGETS:
        allowed = getattr(spec.budget, name)
        if allowed is not None:
            yield f"{allowed:g} {said}"


def _named(fields: dict[str, Any]) -> str:
    """A sampler or pruner with its options."""
    options = [f"{name} {value}" for name, value in fields.items() if name != "type" and value]
    return str(fields["type"]) + (f" ({', '.join(options)})" if options else "")


def _count(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def _some(names: Sequence[str]) -> str:
    if len(names) <= _MAX_NAMES:
        return _listed(names)
    return _listed([*names[:_MAX_NAMES], f"{len(names) - _MAX_NAMES} more"])


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
