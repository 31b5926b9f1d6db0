"""Reads a long journal in one pass: of each trial one log that holds all that was written of it.

Optuna copies a trial for each log that it replays. What is folded here it replays once a trial.

Invariant: a storage that replays the folded logs holds what it would hold after the whole journal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeAlias

from optuna.distributions import check_distribution_compatibility, json_to_distribution
from optuna.storages.journal import BaseJournalBackend
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import TrialState

Log: TypeAlias = dict[str, Any]

#: The states of trials that may change.
_OPEN: Final = frozenset({TrialState.RUNNING, TrialState.WAITING})


class FoldedJournal(BaseJournalBackend):
    """A journal whose beginning, up to where it is first read to, is read folded.

    Made for one storage, which counts the logs that it was given.
    """

    def __init__(self, journal: BaseJournalBackend) -> None:
        self._journal = journal
        #: how many logs more than were given the journal holds
        self._num_folded_away = 0

    def read_logs(self, log_number_from: int) -> Iterator[Log]:
        """The logs from a number on, of those that were given so far."""
        if log_number_from > 0:
            yield from self._journal.read_logs(log_number_from + self._num_folded_away)
            return
        folding = Folding()
        num_read = 0
        for log in self._journal.read_logs(0):
            folding.add(log)
            num_read += 1
        self._num_folded_away = num_read - len(folding.logs)
        yield from folding.logs

    def append_logs(self, logs: list[Log]) -> None:
        """Append logs."""
        self._journal.append_logs(logs)


class Folding:
    """Folds logs as they are added, by the rules by which Optuna replays them.

    A log that Optuna would pass over, of a trial that has ended or that is not there, is left out.
    """

    def __init__(self) -> None:
        self.logs: list[Log] = []
        #: names of the studies that are there, by id
        self._studies: dict[int, str] = {}
        self._num_studies = 0
        self._trials: list[_Trial] = []
        self._num_trials_of: dict[int, int] = {}
        #: by study and parameter: the lowest number of a trial that has it, and its distribution
        self._first: dict[tuple[int, str], tuple[int, str]] = {}
        self._apply = {
            JournalOperation.CREATE_STUDY: self._create_study,
            JournalOperation.DELETE_STUDY: self._delete_study,
            JournalOperation.CREATE_TRIAL: self._create_trial,
            JournalOperation.SET_TRIAL_PARAM: self._set_param,
            JournalOperation.SET_TRIAL_STATE_VALUES: self._set_state,
            JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE: self._set_intermediate_value,
            JournalOperation.SET_TRIAL_USER_ATTR: self._set_user_attr,
            JournalOperation.SET_TRIAL_SYSTEM_ATTR: self._set_system_attr,
        }

    def add(self, log: Log) -> None:
        """Take in the next log."""
        self._apply.get(log["op_code"], self.logs.append)(log)

    def _create_study(self, log: Log) -> None:
        self.logs.append(log)
        if log["study_name"] not in self._studies.values():
            self._studies[self._num_studies] = log["study_name"]
            self._num_studies += 1

    def _delete_study(self, log: Log) -> None:
        self.logs.append(log)
        self._studies.pop(log["study_id"], None)

    def _create_trial(self, log: Log) -> None:
        study = log["study_id"]
        if study not in self._studies:
            return
        number = self._num_trials_of.get(study, 0)
        self._num_trials_of[study] = number + 1
        self.logs.append(log)
        self._trials.append(_Trial(log, study, number))
        for name, distribution in log.get("distributions", {}).items():
            self._note_first(study, name, number, distribution)

    def _open_trial(self, log: Log) -> _Trial | None:
        """The trial of a log, if it is there and has not ended."""
        number = log["trial_id"]
        if not 0 <= number < len(self._trials):
            return None
        trial = self._trials[number]
        return None if trial.has_ended else trial

    def _set_param(self, log: Log) -> None:
        trial = self._open_trial(log)
        name, distribution = log["param_name"], log["distribution"]
        if trial is None or not self._is_compatible(trial.study, name, distribution):
            return
        trial.part("distributions")[name] = distribution
        trial.part("params")[name] = log["param_value_internal"]
        self._note_first(trial.study, name, trial.number, distribution)

    def _is_compatible(self, study: int, name: str, distribution: str) -> bool:
        """Whether the study's first trial with the parameter allows it to be drawn like that."""
        first = self._first.get((study, name))
        if first is None or first[1] == distribution:
            return True
        known, wanted = json_to_distribution(first[1]), json_to_distribution(distribution)
        try:
            check_distribution_compatibility(known, wanted)
        except ValueError:
            return False
        return True

    def _note_first(self, study: int, name: str, number: int, distribution: str) -> None:
        first = self._first.get((study, name))
        if first is None or number <= first[0]:
            self._first[study, name] = (number, distribution)

    def _set_state(self, log: Log) -> None:
        trial = self._open_trial(log)
        state = log["state"]
        if trial is None or (state == trial.state == TrialState.RUNNING):
            return
        if state == TrialState.RUNNING:
            trial.log["datetime_start"] = log["datetime_start"]
        trial.state = trial.log["state"] = state
        if trial.has_ended:
            trial.log["datetime_complete"] = log["datetime_complete"]
        if log["values"] is not None:
            trial.log["value"], trial.log["values"] = None, log["values"]

    def _set_intermediate_value(self, log: Log) -> None:
        trial = self._open_trial(log)
        if trial is not None:
            # as text, as in a log of a trial that was made with its values
            values = trial.part("intermediate_values")
            values[str(log["step"])] = log["intermediate_value"]

    def _set_user_attr(self, log: Log) -> None:
        trial = self._open_trial(log)
        if trial is not None:
            trial.part("user_attrs").update(log["user_attr"])

    def _set_system_attr(self, log: Log) -> None:
        trial = self._open_trial(log)
        if trial is not None:
            trial.part("system_attrs").update(log["system_attr"])


class _Trial:
    """A trial, and the log that it is folded into."""

    __slots__ = ("log", "number", "state", "study")

    def __init__(self, log: Log, study: int, number: int) -> None:
        self.log = log
        self.study = study
        self.number = number
        self.state: int = log.get("state", TrialState.RUNNING)

    @property
    def has_ended(self) -> bool:
        return self.state not in _OPEN

    def part(self, name: str) -> dict[str, Any]:
        """A mapping of the log, made where it has none."""
        found: dict[str, Any] = self.log.setdefault(name, {})
        return found
