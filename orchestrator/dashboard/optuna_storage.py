"""The fleet's studies as Optuna storages, to be read: wherever the results of each lie.

Invariant: nothing is written, and a study is opened when somebody looks at it, not for the list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Sequence
from typing import Any, Final

from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from orchestrator.dashboard.study_feed import StudyFeed
from orchestrator.storage.read_only import ReadOnlyStorage

#: Bytes of a study's number: a browser holds 53 bits.
_NUMBER_BYTES: Final = 6


def number_of(name: str, generation: str) -> int:
    """A study's number: the same at each start, and another one for another study of the name."""
    digest = hashlib.sha256(f"{name}\0{generation}".encode()).digest()
    return int.from_bytes(digest[:_NUMBER_BYTES])


class _NoTrials(ReadOnlyStorage):
    """What both have in common: no study is found by the number of a trial."""

    def get_trial(self, trial_id: int) -> FrozenTrial:
        raise KeyError(trial_id)


class StudyList(_NoTrials):
    """The names of all studies, and nothing of their trials.

    Args:
        studies: By number, each with its name and its directions.
    """

    def __init__(self, studies: dict[int, tuple[str, Sequence[str]]]) -> None:
        self._studies = studies

    def get_all_studies(self) -> list[FrozenStudy]:
        return [_frozen(number, *found) for number, found in self._studies.items()]

    def get_study_id_from_name(self, study_name: str) -> int:
        raise KeyError(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        return self._studies[study_id][0]

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return _directions(self._studies[study_id][1])

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        raise KeyError(study_id)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        raise KeyError(study_id)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        raise KeyError(study_id)


class OneStudy(_NoTrials):
    """One study, read on at each look.

    Args:
        number: What it is called by.
        feed: What reads it.
    """

    def __init__(self, number: int, feed: StudyFeed) -> None:
        self._number, self._feed = number, feed

    def get_all_studies(self) -> list[FrozenStudy]:
        study, _ = self._results(self._number)
        inner, at = study._storage, study._study_id
        return [
            FrozenStudy(
                study_name=self._feed.name,
                direction=None,
                directions=list(study.directions),
                user_attrs=inner.get_study_user_attrs(at),
                system_attrs=inner.get_study_system_attrs(at),
                study_id=self._number,
            )
        ]

    def get_study_id_from_name(self, study_name: str) -> int:
        if study_name != self._feed.name:
            raise KeyError(study_name)
        return self._number

    def get_study_name_from_id(self, study_id: int) -> str:
        self._results(study_id)
        return self._feed.name

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        return list(self._results(study_id)[0].directions)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        self._results(study_id)
        return dict(self.get_all_studies()[0].user_attrs)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        self._results(study_id)
        return dict(self.get_all_studies()[0].system_attrs)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        trials = self._results(study_id)[1]
        return trials if states is None else [each for each in trials if each.state in states]

    def _results(self, study_id: int) -> Any:
        found = self._feed.results() if study_id == self._number else None
        if found is None:
            raise KeyError(study_id)
        return found


def _frozen(number: int, name: str, directions: Sequence[str]) -> FrozenStudy:
    return FrozenStudy(
        study_name=name,
        direction=None,
        directions=_directions(directions),
        user_attrs={},
        system_attrs={},
        study_id=number,
    )


def _directions(names: Sequence[str]) -> list[StudyDirection]:
    return [StudyDirection[name.upper()] for name in names]
