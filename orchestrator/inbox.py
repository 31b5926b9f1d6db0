"""Collect: what trials report, ask for and end with, from the inbox stream into the storage.

Invariant: an entry is acknowledged only when the storage has it on disk; one that comes twice
changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optuna.distributions import json_to_distribution

from orchestrator.driven import ATTR, DrivenStudy
from orchestrator.lifecycle import TOLD_AS
from orchestrator.space import suggest
from workers.logs import get_logger
from workers.protocol.messages import InboxEntry, Result
from workers.protocol.states import TrialState

log = get_logger(__name__)


class Collector:
    """Takes the inbox entries of one study in."""

    def __init__(self, study: DrivenStudy) -> None:
        self._study = study

    def collect(self, entries: Sequence[InboxEntry]) -> None:
        """Take entries in, in their order, and bring them to disk, so that they may be dropped."""
        handlers = {"report": self._report, "suggest": self._suggest, "terminal": self._end}
        ended = []
        for entry in entries:
            try:
                handlers[entry.kind](entry)
            except KeyError:
                # Redis kept what the storage lost, or never had
                log.warning("unknown_trial", study=self._study.name, trial=entry.number)
            if entry.kind == "terminal":
                ended.append(entry)
        self._study.sync()
        for entry in ended:
            self._study.leases.settle(entry.number, TrialState(entry.subject))

    def _report(self, entry: InboxEntry) -> None:
        stored, step = self._study.stored(entry.number), int(entry.subject)
        if stored.state.is_finished():
            return
        if step not in stored.intermediate_values:
            self._study.report(entry.number, step, float(entry.payload))
        if self._study.spec.pruner.type != "none":
            answer = {
                "request": f"report:{step}",
                "prune": self._study.should_prune(entry.number),
            }
            self._study.leases.reply(entry.number, entry.token, answer)

    def _suggest(self, entry: InboxEntry) -> None:
        if self._study.stored(entry.number).state.is_finished():
            return
        request = f"suggest:{entry.subject}"
        trial = self._study.asked(entry.number)
        try:
            value = suggest(trial, entry.subject, json_to_distribution(entry.body))
        except ValueError as error:
            answer = {"request": request, "error": str(error)}
            self._study.leases.reply(entry.number, entry.token, answer)
            return
        # a suggestion that a worker has seen must outlive this process
        self._study.sync()
        self._study.leases.reply(
            entry.number,
            entry.token,
            {"request": request, "value": value},
            param=(entry.subject, value),
        )

    def _end(self, entry: InboxEntry) -> None:
        """Tell Optuna how a trial ended; the first end that is told stays."""
        stored, state = self._study.stored(entry.number), TrialState(entry.subject)
        result = Result.model_validate(entry.payload)
        if stored.state.is_finished():
            if stored.state is not TOLD_AS[state] or (
                state is TrialState.COMPLETE and stored.values != result.values
            ):
                log.error(
                    "second_result_refused",
                    study=self._study.name,
                    trial=entry.number,
                    values=result.values,
                    stored=stored.values,
                )
            return
        self._attach(entry, state, result)
        values = result.values if state is TrialState.COMPLETE else None
        self._study.tell(entry.number, TOLD_AS[state], values)
        log.info(
            "told",
            study=self._study.name,
            trial=entry.number,
            state=state.value,
            values=result.values,
            error=result.error,
        )

    def _attach(self, entry: InboxEntry, state: TrialState, result: Result) -> None:
        facts: dict[str, Any] = {
            **result.user_attrs,
            f"{ATTR}state": state.value,
            f"{ATTR}attempt": entry.attempt,
            f"{ATTR}busy_seconds": round(result.busy_seconds, 3),
        }
        if result.error is not None:
            facts[f"{ATTR}error"] = result.error
        for key, value in facts.items():
            self._study.set_attr(entry.number, key, value)
        for key, constraint in result.constraints.items():
            self._study.asked(entry.number).set_constraint(key, constraint)
