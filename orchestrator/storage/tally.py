"""The trials of a study summed up: what a status tells of them, kept while they come and end.

Invariant: it says what a count over all trials would say, and neither keeping it nor reading it
costs more in a study of many trials than in one of few.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import optuna
from optuna.trial import FrozenTrial

from orchestrator.storage.attributes import ATTR, is_paused
from orchestrator.storage.best_so_far import BestSoFar
from orchestrator.storage.best_trials import (
    best_first,
    is_feasible,
    least_violating_first,
    note_better,
)
from workers.protocol.spec import Direction
from workers.protocol.states import OUT_OF_MEMORY, TrialState
from workers.protocol.study_options import MAX_BEST

#: How many of the best trials are shown, and how many of the latest are kept.
NUM_TOP: Final = 5
NUM_RECENT: Final = 20


class Ends(NamedTuple):
    """How attempts ended that were not the last of their trial."""

    losses: int = 0
    """Processes that were taken down, or lost with their hosts."""
    requeued: Mapping[str, int] = {}
    """By cause, how many were followed by another one."""
    num_anew: int = 0
    """How many went on from no checkpoint though there was one."""

    @classmethod
    def of(cls, trial: FrozenTrial) -> Ends:
        """Those of a trial, as the storage has them."""
        attrs = trial.user_attrs
        return cls(
            attrs.get(f"{ATTR}losses", 0),
            attrs.get(f"{ATTR}requeued", {}),
            attrs.get(f"{ATTR}began_anew", 0),
        )

    @classmethod
    def total(cls, found: Iterable[Ends]) -> Ends:
        """All together."""
        losses, requeued, num_anew = 0, Counter[str](), 0
        for each in found:
            losses += each.losses
            num_anew += each.num_anew
            requeued.update(each.requeued)
        return cls(losses, requeued, num_anew)


_NO_ENDS: Final = Ends()


class Tally:
    """Counts and sums over the trials of one study.

    Args:
        directions: The study's.
        trials: Those that there are, each once.
    """

    def __init__(self, directions: Sequence[Direction], trials: Iterable[FrozenTrial] = ()) -> None:
        self._directions = directions
        self.open: set[int] = set()
        """Numbers of trials that have not ended."""
        self.waiting: set[int] = set()
        """Of them, those with given parameters that have not been asked for."""
        self.paused: dict[int, float] = {}
        """Of the open ones, those that are paused at a rung, and how long each has held slots."""
        self._paused_seconds = 0.0
        self.num_given = 0
        """Trials whose parameters people gave."""
        self.ended: Counter[TrialState] = Counter()
        """How many trials ended how, in the fleet's terms."""
        self.num_complete = 0
        """Trials that are COMPLETE to Optuna."""
        self.num_infeasible = 0
        """Of them, those that violate a constraint."""
        self.busy_seconds = 0.0
        self.slot_seconds = 0.0
        """How long they held slots, over all their attempts."""
        self.gpu_seconds = 0.0
        """Likewise, slots with a GPU."""
        self.num_out_of_memory = 0
        """Pruned trials that ran out of memory."""
        self.ends = Ends()
        """How attempts at ended trials ended that were not their last."""
        self.ends_at_rungs: dict[int, Ends] = {}
        """Of the paused ones that had such ends, which are not in that sum."""
        self.best: list[FrozenTrial] = []
        """The best first, as many as a study may keep; of several directions, the whole front."""
        self.least_violating: list[FrozenTrial] = []
        """Those that violate constraints least, as many as a study may keep; with none above."""
        self.best_so_far = BestSoFar(directions[0])
        """Of a study with one direction."""
        self.recent: list[FrozenTrial] = []
        """The latest ended, in the order of their end."""
        self.add(trials)

    @property
    def num_ended(self) -> int:
        """Trials that have ended."""
        return self.ended.total()

    @property
    def num_trials(self) -> int:
        """All trials."""
        return len(self.open) + self.num_ended

    @property
    def used_seconds(self) -> float:
        """Slot-seconds that its ended and its paused trials have used."""
        return self.busy_seconds + self._paused_seconds

    @property
    def trial_seconds(self) -> float | None:
        """The mean over the latest trials of what each took; None before any has run to its end."""
        ran = [busy_seconds(trial) for trial in self.recent if not _was_withdrawn(trial)]
        return sum(ran) / len(ran) if ran else None

    @property
    def num_sampled(self) -> int:
        """Trials that the sampler was asked for."""
        return self.num_trials - self.num_given

    def num_wanted(self, sampled: float) -> int:
        """How many trials there are to be in all, where the sampler is to be asked for so many.

        Of a study that was handed in again with fewer than it has, those that it has.
        """
        return max(self.num_trials, self.num_given + int(sampled))

    def recount(self, trials: Iterable[FrozenTrial]) -> None:
        """Sum up anew.

        Args:
            trials: All that there are now.
        """
        vars(self).update(vars(Tally(self._directions, trials)))

    def add(self, trials: Iterable[FrozenTrial]) -> None:
        """Take trials in: new ones, and such that were open and have ended since."""
        ended = []
        for trial in trials:
            if trial.number not in self.open and "fixed_params" in trial.system_attrs:
                self.num_given += 1
            self.waiting.discard(trial.number)
            self._paused_seconds -= self.paused.pop(trial.number, 0.0)
            self.ends_at_rungs.pop(trial.number, None)
            if trial.state is optuna.trial.TrialState.WAITING:
                self.waiting.add(trial.number)
            if trial.state.is_finished():
                self.open.discard(trial.number)
                ended.append(trial)
                continue
            self.open.add(trial.number)
            if is_paused(trial.user_attrs):
                self._note_paused(trial)
        self._add_ended(ended)

    def _note_paused(self, trial: FrozenTrial) -> None:
        self.paused[trial.number] = _attr(trial, "slot_seconds")
        self._paused_seconds += self.paused[trial.number]
        ends = Ends.of(trial)
        if ends != _NO_ENDS:
            self.ends_at_rungs[trial.number] = ends

    def _add_ended(self, trials: Sequence[FrozenTrial]) -> None:
        for trial in trials:
            self.ended[state_of(trial)] += 1
            self.busy_seconds += busy_seconds(trial)
            self.slot_seconds += _attr(trial, "slot_seconds")
            self.gpu_seconds += _attr(trial, "gpu_seconds")
            self.num_out_of_memory += ran_out_of_memory(trial)
            self._note_recent(trial)
        ends = [each for each in map(Ends.of, trials) if each != _NO_ENDS]
        if ends:
            self.ends = Ends.total([self.ends, *ends])
        complete = [trial for trial in trials if trial.state is optuna.trial.TrialState.COMPLETE]
        if complete:
            self._add_complete(complete)

    def _add_complete(self, complete: Sequence[FrozenTrial]) -> None:
        feasible = [trial for trial in complete if is_feasible(trial)]
        self.num_complete += len(complete)
        self.num_infeasible += len(complete) - len(feasible)
        if len(self._directions) > 1:
            self.best = best_first([*self.best, *feasible], self._directions)
        else:
            for trial in sorted(feasible, key=_ended_at):
                if trial.values:
                    self.best_so_far.add(trial.values[0])
                    note_better(self.best, trial, self._directions[0], MAX_BEST)
        self.least_violating = [] if self.best else self._least_violating(complete)

    def _least_violating(self, complete: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        found = [*self.least_violating, *complete]
        return least_violating_first(found, self._directions)[:MAX_BEST]

    def _note_recent(self, trial: FrozenTrial) -> None:
        if self.recent and _ended_at(trial) < _ended_at(self.recent[-1]):
            insort(self.recent, trial, key=_ended_at)
        else:
            self.recent.append(trial)
        if len(self.recent) > NUM_RECENT:
            del self.recent[0]


def state_of(trial: FrozenTrial) -> TrialState:
    """How a trial that has ended did so, in the fleet's terms."""
    told = {
        optuna.trial.TrialState.COMPLETE: TrialState.COMPLETE,
        optuna.trial.TrialState.PRUNED: TrialState.PRUNED,
    }.get(trial.state, TrialState.FAILED)
    return TrialState(trial.user_attrs.get(f"{ATTR}state", told))


def busy_seconds(trial: FrozenTrial) -> float:
    """From the claim of the last attempt to its commit."""
    return _attr(trial, "busy_seconds")


def _was_withdrawn(trial: FrozenTrial) -> bool:
    """Whether a trial was cancelled before anybody ran it."""
    return state_of(trial) is TrialState.CANCELLED and not busy_seconds(trial)


def ran_out_of_memory(trial: FrozenTrial) -> bool:
    """Whether a trial was given up since it ran out of memory."""
    is_pruned = trial.state is optuna.trial.TrialState.PRUNED
    return is_pruned and trial.constraints.get(OUT_OF_MEMORY, 0.0) > 0


def _attr(trial: FrozenTrial, name: str) -> float:
    return float(trial.user_attrs.get(f"{ATTR}{name}", 0.0))


def _ended_at(trial: FrozenTrial) -> float:
    return trial.datetime_complete.timestamp() if trial.datetime_complete else 0.0
