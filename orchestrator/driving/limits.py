"""Holds one study to its budgets and stops, and keeps with its results what ended it.

Invariant: what counts against a budget is with the results or in the trials' records, so that a
budget holds however often its orchestrator is killed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from orchestrator.driving.budgets import (
    Reached,
    Snapshot,
    is_failing_alike,
    reached,
    spares_given,
)
from orchestrator.driving.progress import Progress
from orchestrator.storage.attributes import ENDED_BY_ATTR, FORGIVEN_ATTR
from orchestrator.storage.budget_uses import uses
from orchestrator.storage.tally import Tally
from workers.coordination.leases import TrialLeases
from workers.protocol.spec import StudySpec
from workers.protocol.study_options import BudgetSpec


class Limits:
    """What one study has used up, and whether that is all.

    Args:
        study: Open for writing.
        spec: Its specification.
        tally: Its trials, summed up; kept by others.
        wall_seconds: Tells how long it has been driven.
    """

    def __init__(
        self,
        study: optuna.Study,
        spec: StudySpec,
        tally: Tally,
        wall_seconds: Callable[[], float],
    ) -> None:
        self._study = study
        self._spec = spec
        self._tally = tally
        self._wall_seconds = wall_seconds
        attrs = study.user_attrs
        self._stored: dict[str, Any] | None = attrs.get(ENDED_BY_ATTR)
        self._num_forgiven = int(attrs.get(FORGIVEN_ATTR, 0))
        self._progress = self._course()
        #: open trial -> seconds for which it has held slots, and slots with a GPU
        self._held: dict[int, tuple[float, float]] = {}

    @property
    def reached(self) -> Reached | None:
        """What ends the study, as far as is known; None to go on."""
        return reached(self._spec, self._seen())

    @property
    def reason(self) -> str | None:
        """Why no further trial is to be started; None to go on."""
        found = self.reached
        return None if found is None else found.reason

    @property
    def spares_given(self) -> bool:
        """Whether trials whose parameters people gave are run also where a limit is reached."""
        return spares_given(self._spec, self._seen())

    @property
    def is_failing_alike(self) -> bool:
        """Whether that is for failures in a row: somebody has to mend something."""
        return is_failing_alike(self._spec, self._seen())

    @property
    def traceback(self) -> str | None:
        """That of those failures."""
        return self._progress.traceback if self.is_failing_alike else None

    @property
    def budgets(self) -> dict[str, tuple[float, float]]:
        """Of each budget: how much is used, and how much there is."""
        seen = self._seen()
        return uses(
            self._spec,
            self._tally.num_trials,
            wall_seconds=seen.wall_seconds,
            slot_seconds=seen.slot_seconds,
            gpu_seconds=seen.gpu_seconds,
        )

    def take_spec(self, spec: StudySpec) -> None:
        """Go on by a specification that somebody may have extended."""
        self._spec = spec
        self._progress = self._course()

    def note(self, trial: FrozenTrial) -> None:
        """Take in a trial that has ended."""
        self._progress.note(trial)
        self._held.pop(trial.number, None)  # it is in the tally now

    def resume(self) -> None:
        """Go on, after failures that had ended the study: somebody has handed it in again."""
        if self._stored is not None and self._stored["traceback"] is not None:
            self.forgive()

    def forgive(self) -> None:
        """Let failures until now not count any more: somebody went on with the study."""
        self._num_forgiven = self._tally.num_ended
        self._study.set_user_attr(FORGIVEN_ATTR, self._num_forgiven)
        self._progress.forgive()

    def look(self, leases: TrialLeases, now_ms: int) -> str | None:
        """Look at what trials use now; and `keep`.

        Args:
            leases: Its trials.
            now_ms: The server's clock.

        Returns:
            Why no further trial is to be started; None to go on.
        """
        if self._spec.budget != BudgetSpec():
            records = leases.records(sorted(self._tally.open))
            self._held = {number: each.held_seconds(now_ms) for number, each in records.items()}
        return self.keep()

    def keep(self) -> str | None:
        """Keep with the results what ends the study, if something does; that reason."""
        limit = self.reached
        found = None if limit is None else {**limit._asdict(), "traceback": self.traceback}
        if found != self._stored:
            self._stored = found
            self._study.set_user_attr(ENDED_BY_ATTR, found)
        return None if limit is None else limit.reason

    def _seen(self) -> Snapshot:
        return Snapshot(
            wall_seconds=self._wall_seconds(),
            slot_seconds=self._tally.slot_seconds + sum(slot for slot, _ in self._held.values()),
            gpu_seconds=self._tally.gpu_seconds + sum(gpu for _, gpu in self._held.values()),
            best=self._progress.best,
            num_since_better=self._progress.num_since_better,
            num_alike=self._progress.num_alike,
        )

    def _course(self) -> Progress:
        trials = self._study.get_trials(deepcopy=False)
        ended = [trial for trial in trials if trial.state.is_finished()]
        return Progress(self._spec, ended, self._num_forgiven)
