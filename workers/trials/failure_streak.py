"""Failures in a row of this process, and when they speak against it and not against an objective.

A process may be broken by what no trial of its own does: a library that was half imported, no file
descriptors left. A fresh one takes its place, and says whether the objective was to blame.

Invariant: no process is doubted for the sake of a study none of whose trials has succeeded, nor
twice for the same trial.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import redis

from workers.coordination.studies import Studies

#: So many different trials that fail in a row, while others of their study succeed, are no chance.
_MANY: Final = 3


class FailureStreak:
    """The trials that failed in this process since one last succeeded in it.

    Args:
        studies: Tells how many trials of a study have succeeded anywhere.
    """

    def __init__(self, studies: Studies) -> None:
        self._studies = studies
        #: study -> its trials that failed here
        self._failed: dict[str, set[int]] = {}
        #: study -> how many of its trials had succeeded when the first of them failed here
        self._succeeded_before: dict[str, int] = {}
        self._doubted: set[tuple[str, int]] = set()

    def end(self) -> None:
        """Note that a trial succeeded here: what failed before was no fault of the process."""
        self._failed.clear()
        self._succeeded_before.clear()

    def add(self, study: str, number: int, *, is_repeated: bool) -> str | None:
        """Note that a trial failed here; why the process is to be doubted, if it is.

        Args:
            study: The trial's study.
            number: The trial.
            is_repeated: Whether it failed in the same way in its attempt before.
        """
        succeeded = self._num_succeeded(study)
        before = self._succeeded_before.setdefault(study, succeeded)
        failed = self._failed.setdefault(study, set())
        is_again_here = is_repeated and number in failed
        failed.add(number)
        if (study, number) in self._doubted:
            return None
        if is_again_here and succeeded:
            reason = f"trial {number} failed here twice in the same way; others succeed"
        elif len(failed) >= _MANY and succeeded > before:
            reason = f"{len(failed)} trials in a row failed here, while others succeeded elsewhere"
        else:
            return None
        self._doubted.add((study, number))
        return reason

    def has(self, study: str, number: int) -> bool:
        """Whether a trial failed here since one last succeeded."""
        return number in self._failed.get(study, ())

    def _num_succeeded(self, study: str) -> int:
        """As the orchestrator last published it; none while Redis is away."""
        with suppress(redis.RedisError, LookupError, TypeError):
            status = self._studies.facts.get(study, "status")
            counts = status["trials"]
            pruned = int(counts["pruned"]) - int(status.get("out_of_memory", 0))
            return int(counts["complete"]) + pruned
        return 0
