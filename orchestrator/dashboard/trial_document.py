"""One trial as the page shows it: its parameters, its curve, its attempts and why each ended."""

from __future__ import annotations

from typing import Any, Final

from optuna.trial import FrozenTrial

from orchestrator.dashboard.curves import curve_of
from orchestrator.dashboard.study_feed import StudyFeed
from orchestrator.status import StudyStatus
from orchestrator.storage.retriable import retriable
from orchestrator.views.explain import explain, place, reason
from orchestrator.views.printed_text import lines_of
from orchestrator.views.trial_life import TrialLife, life_of, with_cost, with_results
from workers.protocol.errors import RedisUnavailableError, StudyNotKnownError

#: Bytes and lines of what an attempt printed.
_MAX_PRINTED: Final = 32_000
_MAX_LINES: Final = 200

#: Points of the one curve of a trial's own page.
_MAX_POINTS: Final = 2000


def trial_document(feed: StudyFeed, number: int) -> dict[str, Any]:
    """All that is known of a trial.

    Raises:
        StudyNotKnownError: There is no such study, or no such trial in it.
    """
    status = feed.handle.status()
    trials = feed.trials()
    told, now = feed.told_of(number)
    life = life_of(feed.name, number, told)
    has_results = 0 <= number < len(trials)
    if has_results:
        life = with_results(life, trials)
    elif life.is_without_events:
        raise StudyNotKnownError(
            f"trial {number}: study {feed.name!r} has no such trial; it has {len(trials)}, from 0"
        )
    life = with_cost(life, told, now)
    running = next((each for each in status.running if each.number == number), None)
    return {
        "life": _life(life),
        "sentences": list(explain(life)),
        "metrics": status.metrics,
        "directions": status.directions,
        "values": trials[number].values if has_results else None,
        "can_retry": has_results and _can_retry(feed, status, trials[number], life),
        "constraints": trials[number].constraints if has_results else {},
        "curve": curve_of(trials[number], _MAX_POINTS) if has_results else None,
        "printed": _printed(feed, number),
        "running": None if running is None else running.model_dump(mode="json"),
    }


def _can_retry(feed: StudyFeed, status: StudyStatus, trial: FrozenTrial, life: TrialLife) -> bool:
    """Whether the study would run the trial's parameters again."""
    is_asked_for = bool(life.retried_as) or not retriable([trial], [trial.number])
    return not is_asked_for and "enqueue" in feed.offers(status)


def _printed(feed: StudyFeed, number: int) -> list[dict[str, Any]]:
    """The end of what each attempt printed, as `trialfleet logs` shows it."""
    try:
        found = feed.handle.printed(number, asks_store=False, most_bytes=_MAX_PRINTED)
    except RedisUnavailableError:
        return []
    return [
        {"attempt": each.attempt, "lines": lines_of(each.text[-_MAX_PRINTED:])[-_MAX_LINES:]}
        for each in found
        if each.text
    ]


def _life(life: TrialLife) -> dict[str, Any]:
    document = life.model_dump(mode="json", exclude={"attempts", "unknown"})
    attempts = [
        {
            **attempt.model_dump(mode="json", exclude={"process"}),
            "where": place(attempt.host, attempt.pid, attempt.device),
            "why": reason(attempt.cause, attempt.detail, attempt.count),
        }
        for attempt in life.attempts
    ]
    cost = {"held_seconds": life.held_seconds, "steps_lost": life.steps_lost}
    return {**document, "attempts": attempts, **cost}
