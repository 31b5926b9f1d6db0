"""Collect: what trials report, ask for and end with, from the inbox stream into the storage.

An entry that tells nothing, or something that the storage does not take, is set aside with its
reason, where `status` shows it, and its trial goes on or ends all the same.

Invariant: an entry is acknowledged only when the storage has it on disk; one that comes twice
changes nothing, and none is read for ever.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.trial import FrozenTrial

from orchestrator.driving.driven import DrivenStudy
from orchestrator.driving.end_facts import facts_of_attempts, facts_of_end
from orchestrator.driving.halving import Place
from orchestrator.driving.reconcile import TOLD_AS
from orchestrator.storage.attributes import ATTR
from orchestrator.storage.opening import refuses_value
from orchestrator.submission.space import suggest
from workers.coordination.inbox import Entry
from workers.coordination.trial_record import TrialRecord
from workers.logs import get_logger
from workers.protocol.errors import UnreadableEntryError
from workers.protocol.messages import (
    BrokenEntry,
    Drawn,
    End,
    InboxEntry,
    Pause,
    Question,
    Report,
    Result,
)
from workers.protocol.plain import describe_error
from workers.protocol.seals import WAY_OUT
from workers.protocol.states import TrialState

log = get_logger(__name__)

#: How many of the entries that were set aside a status names.
_SHOWN: Final = 5

#: Why entries are left that nobody of the fleet has written.
_UNSIGNED: Final = (
    "FLEET_SECRET is set here, and what its trials told is not signed by it, in {} entries:"
    f" {WAY_OUT}"
)


class Collector:
    """Takes the inbox entries of one study in."""

    def __init__(self, study: DrivenStudy) -> None:
        self._study = study
        self._num_unsigned = 0
        #: why entries were set aside, the latest last
        self.set_aside: deque[str] = deque(study.inbox.reasons_set_aside(_SHOWN), maxlen=_SHOWN)

    def collect(self, entries: Sequence[Entry]) -> None:
        """Take entries in, in their order, and bring them to disk, so that they may be dropped."""
        with self._study.gathering():
            ended = self._take_all(entries)
        self._study.sync()
        self._study.leases.settle_all(ended)

    def _take_all(self, entries: Sequence[Entry]) -> dict[int, TrialState]:
        """Take entries in; the trials that have ended by them."""
        ended: dict[int, TrialState] = {}
        for entry in entries:
            if not self._study.leases.is_told(entry):
                self._leave_unsigned(entry)
                continue
            try:
                state = self._take(entry)
            except UnreadableEntryError as error:
                state = self._set_aside(entry, str(error))
            if state is not None and entry.number is not None:
                ended[entry.number] = state
        return ended

    def tell_lost(self, number: int, record: TrialRecord) -> None:
        """End a trial that Redis has as ended, and of whose end no entry is left."""
        state = record.state
        if state is TrialState.CANCELLED:
            # withdrawn by an orchestrator that ended before it said so
            self.tell_cancelled(number, "it was cancelled", record)
        else:
            log.error("result_lost", study=self._study.name, trial=number, state=state)
            self.tell_failed(number, f"its result was lost: Redis has it as {state}, and no more")
        self._study.sync()
        self._study.leases.settle(number, state)

    def tell_paused(self, number: int, record: TrialRecord) -> None:
        """Take a trial as paused that Redis has so, and of whose pause no entry is left."""
        log.warning("pause_noted", study=self._study.name, trial=number, rung=record.rung)
        self._study.trials.put(number, Place(record.rung, is_paused=True))
        self._study.sync()

    def prune_paused(self) -> None:
        """End the trials that are paused, and that will not be promoted any more."""
        numbers = sorted(self._study.tally.paused)
        for number in numbers:
            for key, constraint in self._study.trials.place(number).constraints.items():
                self._study.trials.asked(number).set_constraint(key, constraint)
            self._study.trials.set_attr(number, f"{ATTR}state", TrialState.PRUNED.value)
            self._study.tell(number, TOLD_AS[TrialState.PRUNED], None)
        self._study.sync()
        self._study.leases.settle_all(dict.fromkeys(numbers, TrialState.PRUNED))
        log.info("paused_trials_pruned", study=self._study.name, count=len(numbers))

    def tell_cancelled(self, number: int, reason: str, record: TrialRecord | None) -> None:
        """End a trial that nobody runs, and that nobody is to run; not synced yet."""
        attempts = 0 if record is None else record.attempt
        when = "while it waited for another attempt" if attempts else "before it began"
        if record is not None and attempts:
            self._store(number, facts_of_attempts(record))
        self.tell_failed(number, f"{reason} {when}", TrialState.CANCELLED)

    def _store(self, number: int, facts: Mapping[str, Any]) -> None:
        """Attach facts to a trial."""
        for key, value in facts.items():
            self._study.trials.set_attr(number, key, value)

    def _take(self, entry: Entry) -> TrialState | None:
        """Take one entry in; the state of the trial if it is an end.

        Raises:
            UnreadableEntryError: It tells nothing, or something that the storage does not take.
        """
        if isinstance(entry, BrokenEntry):
            raise UnreadableEntryError(entry.reason)
        told = entry.decode()
        try:
            stored = self._study.trials.stored(entry.number)
        except KeyError:
            # Redis kept what the storage lost, or never had
            log.warning("unknown_trial", study=self._study.name, trial=entry.number)
            return told.state if isinstance(told, End) else None
        if isinstance(told, End):
            return self._end(entry, told, stored)
        if not stored.state.is_finished():
            if isinstance(told, Report):
                self._report(entry, told, stored)
            elif isinstance(told, Pause):
                self._pause(entry, told, stored)
            elif isinstance(told, Question):
                self._answer(entry, told)
            else:
                self._hold(entry.number, told.params)
        return None

    def _hold(self, number: int, params: Mapping[str, Drawn]) -> None:
        """Store parameters that were drawn before, and that the objective has asked for."""
        if params:
            with _to_be_taken(f"parameters of trial {number}"):
                self._study.trials.take(number, params)

    def _report(self, entry: InboxEntry, report: Report, stored: FrozenTrial) -> None:
        self._store_report(entry.number, report, stored)
        if self._study.spec.pruner.prunes:
            answer = {
                "request": f"report:{report.step}",
                "prune": self._study.trials.should_prune(entry.number),
            }
            self._study.leases.reply(entry.number, entry.token, answer)

    def _store_report(self, number: int, report: Report, stored: FrozenTrial) -> None:
        if report.step not in stored.intermediate_values:
            with _to_be_taken(f"report of trial {number} at step {report.step}"):
                self._study.trials.report(number, report.step, report.value)

    def _pause(self, entry: InboxEntry, pause: Pause, stored: FrozenTrial) -> None:
        """Keep where a trial was paused, unless it was promoted since."""
        if pause.rung < Place.of(stored).rung:
            return
        # the report itself may have found the inbox full
        self._store_report(entry.number, Report(step=pause.step, value=pause.value), stored)
        # constraints are told once, and another attempt may know better
        result = pause.result.model_copy(update={"constraints": {}})
        self._hold(entry.number, result.params)
        self._attach(entry, TrialState.PAUSED, result)
        place = Place(pause.rung, is_paused=True, constraints=pause.result.constraints)
        self._study.trials.put(entry.number, place)
        log.info("trial_paused", study=self._study.name, trial=entry.number, rung=pause.rung)

    def _answer(self, entry: InboxEntry, question: Question) -> None:
        request = f"suggest:{question.name}"
        try:
            distribution = _distribution(question)
            value = suggest(self._study.trials.asked(entry.number), question.name, distribution)
        except (ValueError, TypeError, ArithmeticError, UnreadableEntryError) as error:
            # what the objective asked for cannot be had, and it is told so
            answer = {"request": request, "error": describe_error(error, 500)}
            self._study.leases.reply(entry.number, entry.token, answer)
            return
        # a suggestion that a worker has seen must outlive this process
        self._study.sync()
        self._study.leases.reply(
            entry.number,
            entry.token,
            {"request": request, "value": value},
            param=(question.name, value),
        )

    def _end(self, entry: InboxEntry, end: End, stored: FrozenTrial) -> TrialState:
        """Tell Optuna how a trial ended; the first end that is told stays."""
        state, result = end.state, end.result
        if stored.state.is_finished():
            self._compare(entry, end, stored)
            return state
        values = result.values if state is TrialState.COMPLETE else None
        if state is TrialState.COMPLETE:
            self._check_values(entry.number, values)
        self._hold(entry.number, result.params)
        self._attach(entry, state, result)
        self._study.tell(entry.number, TOLD_AS[state], values)
        log.info(
            "told",
            study=self._study.name,
            trial=entry.number,
            state=state.value,
            values=result.values,
            error=result.error,
        )
        return state

    def _compare(self, entry: InboxEntry, end: End, stored: FrozenTrial) -> None:
        is_complete = end.state is TrialState.COMPLETE
        differs = is_complete and stored.values != end.result.values
        if stored.state is not TOLD_AS[end.state] or differs:
            log.error(
                "second_result_refused",
                study=self._study.name,
                trial=entry.number,
                values=end.result.values,
                stored=stored.values,
            )

    def _attach(self, entry: InboxEntry, state: TrialState, result: Result) -> None:
        """Store what belongs to an end; what the storage does not take must not hide the rest."""
        for key, constraint in result.constraints.items():
            self._study.trials.asked(entry.number).set_constraint(key, constraint)
        problem = result.result_error
        for key, value in result.user_attrs.items():
            try:
                with _to_be_taken(f"attribute {key!r} left out"):
                    self._study.trials.set_attr(entry.number, key, value)
            except UnreadableEntryError as error:
                problem = str(error)
        facts = facts_of_end(
            entry,
            state,
            result,
            result_error=problem,
            code=self._study.trials.code_id(result.code),
            has_rungs=self._study.spec.pruner.promote,
        )
        self._store(entry.number, facts)

    def _check_values(self, number: int, values: Sequence[float] | None) -> None:
        """Refuse what Optuna would.

        Raises:
            UnreadableEntryError: There are not as many values as directions, or one is NaN.
        """
        wanted = len(self._study.spec.all_directions)
        if values is None or len(values) != wanted or any(map(math.isnan, values)):
            raise UnreadableEntryError(
                f"end of trial {number}: COMPLETE with {values}, and the study has {wanted}"
                " directions"
            )

    def tell_unreadable(self, number: int, reason: str) -> None:
        """Tell people why a trial's record is written anew."""
        log.error("record_written_anew", study=self._study.name, trial=number, reason=reason)
        shown = f"{reason}; it was written anew"
        self._study.inbox.keep_unreadable(number, shown)
        self.set_aside.append(shown)

    def _set_aside(self, entry: Entry, reason: str) -> TrialState | None:
        """Keep an entry for people to look at; its trial, if it was its end, has failed."""
        log.error("entry_set_aside", study=self._study.name, entry=entry.id, reason=reason)
        self._study.inbox.keep_aside(entry, reason)
        self.set_aside.append(reason)
        if entry.number is None or not self._is_end_of(entry.number, entry.id):
            return None
        self.tell_failed(entry.number, f"its result could not be taken in: {reason}")
        return TrialState.FAILED

    def _leave_unsigned(self, entry: Entry) -> None:
        """Take nothing of what no member of the fleet has signed, and say so once.

        A trial that ended so, or was paused, was run by a process without the secret: it runs
        again.
        """
        shown = _UNSIGNED.format(self._num_unsigned)
        self._num_unsigned += 1
        reason = _UNSIGNED.format(self._num_unsigned)
        if shown in self.set_aside:
            self.set_aside[self.set_aside.index(shown)] = reason
        else:
            self.set_aside.append(reason)
        if self._num_unsigned == 1:
            log.error("entry_set_aside", study=self._study.name, entry=entry.id, reason=reason)
            self._study.inbox.keep_aside(entry, reason)
        if entry.number is not None and self._rests_by(entry, entry.number):
            log.warning("run_again", study=self._study.name, trial=entry.number, reason=reason)
            self._study.check_lead()
            self._study.leases.forget(entry.number)

    def _rests_by(self, entry: Entry, number: int) -> bool:
        """Whether a trial is open in the storage, and rests in Redis by what this entry told."""
        try:
            if self._study.trials.stored(number).state.is_finished():
                return False
        except KeyError:
            return False
        if isinstance(entry, InboxEntry) and entry.kind == "pause":
            record = self._study.leases.record(number)
            is_paused = record is not None and record.state is TrialState.PAUSED
            has_been_taken = number in self._study.tally.paused
            return is_paused and not has_been_taken
        return self._is_end_of(number, entry.id)

    def _is_end_of(self, number: int, entry_id: str) -> bool:
        """Whether a trial ended in Redis with this very entry: nothing else will tell how."""
        record = self._study.leases.record(number)
        return record is not None and record.result_id == entry_id

    def tell_failed(self, number: int, error: str, state: TrialState = TrialState.FAILED) -> None:
        """End a trial of which nobody will tell how it ended."""
        try:
            stored = self._study.trials.stored(number)
        except KeyError:
            return
        if not stored.state.is_finished():
            self._study.trials.set_attr(number, f"{ATTR}state", state.value)
            self._study.trials.set_attr(number, f"{ATTR}error", error)
            self._study.tell(number, TOLD_AS[state], None)


@contextmanager
def _to_be_taken(what: str) -> Iterator[None]:
    """Tell a storage that works, and does not take what it is given, from one that fails.

    Raises:
        UnreadableEntryError: It does not take it.
    """
    try:
        yield
    except Exception as error:
        if not refuses_value(error):
            raise
        raise UnreadableEntryError(f"{what}: {describe_error(error, 300)}") from error


def _distribution(question: Question) -> BaseDistribution:
    """Read what a worker asks from.

    Raises:
        UnreadableEntryError: It is no distribution.
    """
    try:
        return json_to_distribution(question.distribution)
    except Exception as error:
        raise UnreadableEntryError(
            f"parameter {question.name!r}: no distribution: {describe_error(error, 200)}"
        ) from error
