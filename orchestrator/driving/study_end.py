"""That a study has ended, told by its `on_end`, and kept with its results.

Invariant: an end that was told of, or could not be, is known to every orchestrator after this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna

from orchestrator.driving.on_end import EndHook
from orchestrator.status import StudyStatus
from orchestrator.storage.attributes import END_TOLD_ATTR, told_end
from orchestrator.storage.tally import Tally


@dataclass(frozen=True)
class StudyEnd:
    """The end of one study, which is open for writing."""

    study: optuna.Study
    tally: Tally
    hook: EndHook
    sync: Callable[[], None]
    """Brings what was written to disk."""

    def is_told(self, on_end: str | None) -> bool:
        """Whether nothing is left to be done about this end of the study."""
        return on_end is None or self._told() is not None

    def problem(self, on_end: str | None) -> str | None:
        """Why `on_end` failed, if it did."""
        told = None if on_end is None else self._told()
        return None if told is None else told["problem"]

    def tell(self, on_end: str | None, status: StudyStatus) -> bool:
        """See to the study's `on_end`, without waiting; whether that is done.

        Args:
            on_end: The study's.
            status: The study, which is over.
        """
        if on_end is None or self.is_told(on_end):
            return True
        told = self.hook.tell(on_end, status)
        if told is None:
            return False
        ended = {"trials": self.tally.num_trials, "problem": told.problem}
        self.study.set_user_attr(END_TOLD_ATTR, ended)
        self.sync()
        return True

    def _told(self) -> dict[str, Any] | None:
        return told_end(self.study.user_attrs, self.tally.num_trials)
