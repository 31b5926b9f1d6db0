"""All trials of a study as one table of flat columns, in the way of `study.trials_dataframe`.

| column | holds |
|---|---|
| `number`, `state` | as in `status`: queued, running, complete, pruned, failed, dead, cancelled |
| `value`, or `values_<metric>` (`values_<index>` where the study names none) | what it came to |
| `datetime_start`, `datetime_complete` | with the offset from UTC |
| `duration_seconds` | between these two: waiting and all attempts |
| `attempts`, `losses`, `busy_seconds` | claims; processes it took down; the last attempt's time |
| `error`, `result_error`, `reports_left_out` | why it did not end well; what was not stored |
| `params_<name>`, `user_attrs_<name>`, `constraints_<name>` | parameters, attributes, constraints |
| `code_<fact>` | the code that ran, where it was recorded |

Invariant: a cell that a format cannot hold as it is holds it as JSON; none is left out.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, get_args

from optuna.trial import FrozenTrial

from orchestrator.storage.attributes import ATTR, code_of, is_paused
from orchestrator.storage.tally import state_of
from workers.protocol.plain import strict_json

Format: TypeAlias = Literal["csv", "json", "parquet"]

#: All of them.
FORMATS: Final[tuple[Format, ...]] = get_args(Format)

#: The columns that the fleet itself knows, by the names of its attributes.
_OWN: Final = {
    "attempt": "attempts",
    "losses": "losses",
    "busy_seconds": "busy_seconds",
    "error": "error",
    "result_error": "result_error",
    "reports_left_out": "reports_left_out",
}

#: What stands in another column.
_SHOWN_ELSEWHERE: Final = frozenset({"state", "code", "rung"})


@dataclass(frozen=True)
class TrialTable:
    """The columns, in order, and a mapping from column to value a trial."""

    columns: Sequence[str]
    rows: Sequence[Mapping[str, Any]]

    @classmethod
    def of(
        cls,
        trials: Iterable[FrozenTrial],
        metrics: Sequence[str],
        running: Collection[int],
        study_attrs: Mapping[str, Any] = MappingProxyType({}),
    ) -> TrialTable:
        """The table of a study.

        Args:
            trials: Its trials.
            metrics: The columns of its values.
            running: The numbers of those that a worker holds.
            study_attrs: The study's attributes: they hold the code that ran.
        """
        rows = [
            {
                **_row(trial, metrics, trial.number in running),
                **_prefixed("code_", code_of(trial.user_attrs, study_attrs)),
            }
            for trial in trials
        ]
        fixed = ["number", "state", *metrics, "datetime_start", "datetime_complete"]
        fixed += ["duration_seconds", *_OWN.values()]
        found = dict.fromkeys(name for row in rows for name in row)
        others = sorted(set(found) - set(fixed), key=_by_kind)
        return cls([*fixed, *others], rows)

    def write(self, form: Format) -> bytes:
        """The table in one of the formats."""
        return {"csv": self._csv, "json": self._json, "parquet": self._parquet}[form]()

    def _json(self) -> bytes:
        rows: Any = [{name: _written(row.get(name)) for name in self.columns} for row in self.rows]
        return (json.dumps(strict_json(rows), ensure_ascii=False, allow_nan=False) + "\n").encode()

    def _csv(self) -> bytes:
        file = io.StringIO(newline="")
        writer = csv.writer(file)
        writer.writerow(self.columns)
        writer.writerows([_cell(row.get(name)) for name in self.columns] for row in self.rows)
        return file.getvalue().encode()

    def _parquet(self) -> bytes:
        import pyarrow as pa
        from pyarrow import parquet

        columns = {name: [row.get(name) for row in self.rows] for name in self.columns}
        arrays = {name: pa.array(_of_one_type(values)) for name, values in columns.items()}
        sink = io.BytesIO()
        parquet.write_table(pa.table(arrays), sink)
        return sink.getvalue()


def value_columns(metrics: Sequence[str], num_values: int) -> list[str]:
    """The columns of a study's values."""
    if num_values == 1:
        return ["value"]
    return [f"values_{name}" for name in metrics or range(num_values)]


def _state(trial: FrozenTrial, is_running: bool) -> str:  # noqa: FBT001
    if trial.state.is_finished():
        return state_of(trial).value.lower()
    if is_running:  # a worker holds it
        return "running"
    return "paused" if is_paused(trial.user_attrs) else "queued"


def _row(trial: FrozenTrial, metrics: Sequence[str], is_running: bool) -> dict[str, Any]:  # noqa: FBT001
    started, completed = trial.datetime_start, trial.datetime_complete
    row: dict[str, Any] = {
        "number": trial.number,
        "state": _state(trial, is_running),
        **dict(zip(metrics, trial.values or [], strict=False)),
        "datetime_start": _aware(started),
        "datetime_complete": _aware(completed),
        "duration_seconds": (completed - started).total_seconds()
        if completed and started
        else None,
        "losses": 0,
    }
    for name, value in trial.user_attrs.items():
        own = name.removeprefix(ATTR)
        if own == name:
            row[f"user_attrs_{name}"] = value
        elif own not in _SHOWN_ELSEWHERE:
            row[_OWN.get(own, f"fleet_{own}")] = value
    return {
        **row,
        **_prefixed("params_", trial.params),
        **_prefixed("constraints_", trial.constraints),
    }


def _prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in values.items()}


def _by_kind(name: str) -> tuple[int, str]:
    kinds = ("params_", "user_attrs_", "constraints_", "code_", "")
    return next(index for index, kind in enumerate(kinds) if name.startswith(kind)), name


def _aware(moment: datetime | None) -> datetime | None:
    """Optuna's moments are of the local time zone, and do not say so."""
    return None if moment is None else moment.astimezone()


def _written(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _cell(value: Any) -> Any:
    """A value as a cell of text; that of None is empty."""
    if isinstance(value, (bool, list, dict)):
        return _as_json(value)
    return _written(value)


def _of_one_type(values: Sequence[Any]) -> Sequence[Any]:
    """A column whose values are of one type: numbers, truth values, moments, else text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {datetime}:
        return [None if value is None else value.astimezone(UTC) for value in values]
    if kinds in ({bool}, {float}, {str}) or (kinds == {int} and all(map(_fits, values))):
        return values
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    return [
        value if value is None or isinstance(value, str) else _as_json(value) for value in values
    ]


def _fits(value: int | None) -> bool:
    return value is None or -(2**63) <= value < 2**63


def _as_json(value: Any) -> str:
    return json.dumps(strict_json(value), ensure_ascii=False)
