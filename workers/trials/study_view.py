"""`trial.study`: the study as an objective may look at it, by Optuna's names; reading alone.

What needs all trials is read from the study's storage where this machine has it. What the
orchestrator publishes (directions, names, the best value) can be had anywhere.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Container
from pathlib import Path
from typing import Any, Final, NoReturn

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from workers.coordination.address import redact
from workers.coordination.studies import Studies
from workers.protocol.errors import ObjectiveError
from workers.protocol.spec import StudySpec

_JOURNAL: Final = "journal://"


class StudyView:
    """A study, read anew at each call; it cannot be changed, only asked to stop.

    Args:
        spec: The study.
        studies: The studies of this fleet.
        storage_url: Where its results lie by this worker's settings.
    """

    def __init__(self, spec: StudySpec, studies: Studies, storage_url: str) -> None:
        self._spec = spec
        self._studies = studies
        self._storage_url = storage_url

    @property
    def study_name(self) -> str:
        """The study's name."""
        return self._spec.name

    @property
    def directions(self) -> list[StudyDirection]:
        """One direction for each objective value."""
        return [StudyDirection[each.upper()] for each in self._spec.all_directions]

    @property
    def direction(self) -> StudyDirection:
        """The direction of a study with one.

        Raises:
            RuntimeError: It has several.
        """
        if len(self.directions) > 1:
            raise RuntimeError("a study with several directions has no one direction")
        return self.directions[0]

    @property
    def metric_names(self) -> list[str] | None:
        """What the objective's values are called, if the study says."""
        return list(self._spec.metrics) or None

    @property
    def user_attrs(self) -> dict[str, Any]:
        """What is attached to the study."""
        return self._stored().user_attrs

    @property
    def best_trial(self) -> FrozenTrial:
        """The best complete trial.

        Raises:
            ValueError: None is complete yet.
        """
        return self._stored().best_trial

    @property
    def best_trials(self) -> list[FrozenTrial]:
        """The Pareto front."""
        return self._stored().best_trials

    @property
    def best_value(self) -> float:
        """The best value.

        Raises:
            RuntimeError: The study has several directions.
            ValueError: No trial is complete yet.
        """
        if len(self.directions) > 1:
            raise RuntimeError("a study with several directions has no one best value")
        value: float | None = self._studies.facts.get(self._spec.name, "best_value")
        if value is None:
            raise ValueError("no trials are completed yet")
        return value

    @property
    def best_params(self) -> dict[str, Any]:
        """The parameters of the best trial.

        Raises:
            ValueError: None is complete yet.
        """
        return self.best_trial.params

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials."""
        return self.get_trials()

    def get_trials(
        self,
        deepcopy: bool = True,  # noqa: FBT001, FBT002, ARG002 - Optuna's signature
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """All trials, or those in some states."""
        return self._stored().get_trials(deepcopy=False, states=states)

    def stop(self) -> None:
        """End the study when the trials that run have ended; none is started any more."""
        self._studies.ask_to_stop(self._spec.name)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"trial.study.{name}: in a fleet, the orchestrator alone changes a study; an objective"
            " reads directions, names, trials and the best of them, and may call stop()"
        )

    def _stored(self) -> optuna.Study:
        url = self._url()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.load_study(study_name=self._spec.name, storage=_open(url, _file_id(url)))

    def _url(self) -> str:
        """The storage as it can be read here.

        Raises:
            ObjectiveError: It cannot.
        """
        origin = self._studies.origin(self._spec.name)
        begun = (origin.place or "").partition(" on ")[0]
        known = [origin.earlier_url or "", self._storage_url, begun]
        for url in known[:2] if not begun.startswith(_JOURNAL) else known:
            if url and _is_here(url):
                return url
        raise ObjectiveError(
            f"trial.study: the results of {self._spec.name!r} are in"
            f" {origin.place or redact(self._storage_url)}, which is not on this machine; put"
            " FLEET_HOME on a shared file system, or set FLEET_STORAGE as the orchestrator has it"
        )


def _is_here(url: str) -> bool:
    return not url.startswith(_JOURNAL) or Path(url.removeprefix(_JOURNAL)).exists()


def _file_id(url: str) -> int:
    """Tells a journal from another one that has taken its place; 0 for a database."""
    return Path(url.removeprefix(_JOURNAL)).stat().st_ino if url.startswith(_JOURNAL) else 0


@functools.lru_cache(maxsize=2)
def _open(url: str, _file: int) -> BaseStorage:
    """A storage to read from; a journal is read on from where it was read before."""
    if url.startswith(_JOURNAL):
        return JournalStorage(JournalFileBackend(url.removeprefix(_JOURNAL)))
    return RDBStorage(url)
