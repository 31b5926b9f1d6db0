"""A study's trials as columns for charts: small to send, and only what changed is sent again.

Invariant: a row that changed has the revision at which it did; a trial that has ended is read once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from optuna.trial import FrozenTrial

from orchestrator.storage.attributes import ATTR, RETRIES_ATTR, is_paused
from orchestrator.storage.best_trials import is_feasible
from orchestrator.storage.tally import busy_seconds, state_of
from workers.protocol.states import TrialState

#: How a trial stands, in one letter each; `O` is open: it waits or runs, as the leases say.
LETTERS: Final = {
    TrialState.COMPLETE: "C", TrialState.PRUNED: "P", TrialState.FAILED: "F",
    TrialState.DEAD: "D", TrialState.CANCELLED: "X",
}  # fmt: skip
_OPEN: Final = "O"
_AT_A_RUNG: Final = "R"
_INFEASIBLE: Final = "V"
_FAILED: Final = frozenset("FD")

#: Digits of a number in a chart.
_DIGITS: Final = 6

#: An axis of larger numbers has no length that a float holds; one of smaller numbers has no scale.
_LARGEST: Final = 1e300
_SMALLEST: Final = 1e-300

#: Characters of a choice in a chart.
_MAX_TEXT: Final = 80


class Row(NamedTuple):
    """One trial, as charts need it; times in seconds since 1970."""

    letter: str
    values: tuple[float | None, ...]
    params: tuple[tuple[str, Any], ...]
    begun: int | None
    ended: int | None
    seconds: float
    attempts: int
    last: float | None
    """The last reported value."""
    step: int | None
    """The step of it."""


class TrialColumns:
    """The rows of one study, kept up to date."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._changed: list[int] = []
        self._open: set[int] = set()
        self.logs: set[str] = set()
        """Parameters that trials asked for on a logarithmic scale."""
        self._failed: set[int] = set()
        self._retried: set[int] = set()

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_failed(self) -> int:
        """Trials that failed or died, and were not tried again."""
        return len(self._failed - self._retried)

    def take(self, trials: Sequence[FrozenTrial], revision: int) -> bool:
        """Take in how all trials are now.

        Args:
            trials: All of the study, by number.
            revision: What rows that differ are marked with.

        Returns:
            Whether any differs.
        """
        has_changed = False
        for number in sorted(self._open.union(range(len(self._rows), len(trials)))):
            row = _row(trials[number])
            self.logs |= log_parameters([trials[number]])
            if number >= len(self._rows):
                self._rows.append(row)
                self._changed.append(revision)
            elif row == self._rows[number]:
                continue
            self._rows[number], self._changed[number] = row, revision
            has_changed = True
            is_open = row.letter in {_OPEN, _AT_A_RUNG}
            (self._open.add if is_open else self._open.discard)(number)
            if row.letter in _FAILED:
                self._failed.add(number)
            if (retried := trials[number].user_attrs.get(RETRIES_ATTR)) is not None:
                self._retried.add(retried)
        return has_changed

    def sign_of(self, number: int) -> object:
        """Differs when something of a trial does; None for one that is not there."""
        return (self._rows[number], number in self._retried) if 0 <= number < len(self) else None

    def since(self, revision: int) -> dict[str, Any]:
        """The rows that changed after a revision, as columns; of -1, all."""
        numbers = [n for n, changed in enumerate(self._changed) if changed > revision]
        rows = [self._rows[number] for number in numbers]
        names = sorted({name for row in rows for name, _ in row.params})
        params = [dict(row.params) for row in rows]
        width = max((len(row.values) for row in rows), default=0)
        return {
            "numbers": numbers,
            "states": "".join(row.letter for row in rows),
            "values": [
                [row.values[at] if at < len(row.values) else None for row in rows]
                for at in range(width)
            ],
            "params": {name: [each.get(name) for each in params] for name in names},
            "begun": [row.begun for row in rows],
            "ended": [row.ended for row in rows],
            "seconds": [row.seconds for row in rows],
            "attempts": [row.attempts for row in rows],
            "last": [row.last for row in rows],
            "steps": [row.step for row in rows],
        }


def number_for_chart(value: float) -> float | None:
    """A number with as many digits as a chart shows; None for what no axis has a place for."""
    if not abs(value) <= _LARGEST:  # nor is what is not a number
        return None
    if abs(value) < _SMALLEST:
        return 0.0  # and never -0.0
    return float(f"{value:.{_DIGITS}g}")


def param_for_chart(value: Any) -> Any:
    """A parameter's value: a number, or text."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, (int, float)):
        return number_for_chart(value)
    text = str(value)
    if len(text) <= _MAX_TEXT:
        return text
    # paths and names of models often differ at their ends alone
    half = _MAX_TEXT // 2
    return f"{text[:half]}…{text[-half:]}"


def log_parameters(trials: Iterable[FrozenTrial]) -> set[str]:
    """The parameters that trials asked for on a logarithmic scale, in a `space` or without one."""
    return {
        name
        for trial in trials
        for name, distribution in trial.distributions.items()
        if getattr(distribution, "log", False)
    }


def letter_of(trial: FrozenTrial) -> str:
    """How a trial stands, in one letter."""
    if not trial.state.is_finished():
        return _AT_A_RUNG if is_paused(trial.user_attrs) else _OPEN
    letter = LETTERS.get(state_of(trial), "F")
    return _INFEASIBLE if letter == "C" and not is_feasible(trial) else letter


def _row(trial: FrozenTrial) -> Row:
    reports = trial.intermediate_values
    return Row(
        letter=letter_of(trial),
        values=tuple(number_for_chart(value) for value in trial.values or ()),
        params=tuple((name, param_for_chart(value)) for name, value in trial.params.items()),
        begun=None if trial.datetime_start is None else int(trial.datetime_start.timestamp()),
        ended=None if trial.datetime_complete is None else int(trial.datetime_complete.timestamp()),
        seconds=round(busy_seconds(trial), 2),
        attempts=int(trial.user_attrs.get(f"{ATTR}attempt", 1)),
        last=number_for_chart(reports[max(reports)]) if reports else None,
        step=max(reports, default=None),
    )
