"""How long a study has been driven with trials to run, by however many orchestrators in turn.

Invariant: a time-out holds however often the orchestrator is killed, but for what was not noted.
"""

from __future__ import annotations

import time

import optuna

from orchestrator.storage.attributes import ATTR


class StudyClock:
    """The clock of one study, kept with its results.

    Args:
        study: Open for writing.
    """

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._seconds_before = float(study.user_attrs.get(f"{ATTR}wall_seconds", 0.0))
        self._seconds_noted = self._seconds_before
        self._opened_at: float | None = None

    @property
    def seconds(self) -> float:
        """How long the study has been driven with trials to run."""
        since = 0.0 if self._opened_at is None else time.monotonic() - self._opened_at
        return self._seconds_before + since

    def start(self) -> None:
        """Count time from now on: the first slot is there."""
        if self._opened_at is None:
            self._opened_at = time.monotonic()

    def stop(self) -> None:
        """Count no time until `start`: the study is paused."""
        self._seconds_before, self._opened_at = self.seconds, None

    def note(self, timeout: float | None, *, at_most_every: float = 0.0) -> None:
        """Write down how long the study has been driven, for an orchestrator after this one.

        Args:
            timeout: Of so many seconds, that they are up is written at once.
            at_most_every: Seconds of that time for which nothing is written.
        """
        seconds = self.seconds
        is_up_now = timeout is not None and self._seconds_noted < timeout <= seconds
        if is_up_now or seconds > self._seconds_noted + at_most_every:
            self._study.set_user_attr(f"{ATTR}wall_seconds", round(seconds, 3))
            self._seconds_noted = seconds
