"""How a study gets on, trial after trial: when one was better, and how many failed alike.

Invariant: taking the trials in as they end says what taking them all in at once would say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from optuna.trial import FrozenTrial, TrialState

from orchestrator.storage.attributes import ATTR, is_paused
from orchestrator.storage.best_trials import is_feasible
from orchestrator.storage.failure_kinds import kind_of
from workers.protocol.spec import StudySpec

_WITH_VALUE: Final = (TrialState.COMPLETE, TrialState.PRUNED)


class Progress:
    """The course of one study.

    Args:
        spec: The study.
        trials: Those that have ended, in any order.
        num_forgiven: How many of them, the first to end, were before somebody went on with a study
            that had been stopped: they speak against it no more.
    """

    def __init__(
        self, spec: StudySpec, trials: Sequence[FrozenTrial] = (), num_forgiven: int = 0
    ) -> None:
        self._sign = 1.0 if spec.all_directions[0] == "maximize" else -1.0
        self._min_delta = spec.stop.min_delta
        self._has_one_value = len(spec.all_directions) == 1
        self._to_beat: float | None = None
        self.best: tuple[int, float] | None = None
        """The best feasible trial and its value; of a study with several directions, none."""
        self.num_since_better = 0
        self.num_alike = 0
        self.traceback: str | None = None
        """Of the trial that failed last, if none succeeded since."""
        ended = sorted(trials, key=_ended_at)
        for index, trial in enumerate(ended):
            if index == num_forgiven:
                self.forgive()
            self.note(trial)
        if num_forgiven >= len(ended):
            self.forgive()

    def note(self, trial: FrozenTrial) -> None:
        """Take in a trial that has ended; one that ended in its pause tells nothing new."""
        if trial.state is TrialState.PRUNED and is_paused(trial.user_attrs):
            return
        if trial.state in _WITH_VALUE:
            self.forgive()
            if self._has_one_value:
                self._note_value(trial)
            return
        told = trial.user_attrs.get(f"{ATTR}traceback")
        if told is None:  # lost with its host, cancelled: no fault of the objective
            return
        is_alike = self.traceback is not None and kind_of(told) == kind_of(self.traceback)
        self.num_alike = self.num_alike + 1 if is_alike else 1
        self.traceback = told

    def forgive(self) -> None:
        """Begin to count failures anew."""
        self.num_alike, self.traceback = 0, None

    def _note_value(self, trial: FrozenTrial) -> None:
        self.num_since_better += 1
        if trial.state is not TrialState.COMPLETE or not is_feasible(trial) or trial.value is None:
            return
        value = self._sign * trial.value
        if self.best is None or value > self._sign * self.best[1]:
            self.best = trial.number, trial.value
        if self._to_beat is None or value > self._to_beat + self._min_delta:
            self._to_beat, self.num_since_better = value, 0


def _ended_at(trial: FrozenTrial) -> tuple[float, int]:
    ended = trial.datetime_complete
    return (ended.timestamp() if ended else 0.0, trial.number)
