"""What an orchestrator and the process of a sampler say to each other: one line of JSON each.

Invariant: a trial that has come over the pipe is to the sampler what it was, its attributes for
people left out.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
from collections.abc import Mapping
from typing import Any, Final

from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState

#: Samplers ask for no time; Optuna's trials have one.
_SOME_TIME: Final = dt.datetime(1970, 1, 1)  # noqa: DTZ001 - as Optuna's

#: What an error of a sampler is raised as: the nearest of these.
_ERRORS: Final[dict[str, type[Exception]]] = {
    kind.__name__: kind
    for kind in (
        Exception, RuntimeError, ValueError, TypeError, ArithmeticError, ZeroDivisionError,
        OverflowError, LookupError, KeyError, IndexError, ImportError, MemoryError,
    )
}  # fmt: skip


def to_line(message: Mapping[str, Any]) -> bytes:
    """A message as it goes over the pipe."""
    return json.dumps(message, default=_as_number).encode() + b"\n"


def from_line(line: bytes) -> dict[str, Any]:
    """A message that came over the pipe."""
    message: dict[str, Any] = json.loads(line)
    return message


def encode_trial(trial: FrozenTrial) -> dict[str, Any]:
    """A trial as a message holds it."""
    return {
        "number": trial.number,
        "id": trial._trial_id,
        "state": trial.state.name,
        "values": trial.values,
        "params": trial.params,
        "distributions": encode_space(trial.distributions),
        "system_attrs": dict(trial.system_attrs),  # of one that is asked, read when it is used
        "intermediate": list(trial.intermediate_values.items()),
    }


def decode_trial(message: Mapping[str, Any]) -> FrozenTrial:
    """A trial that a message holds."""
    state = TrialState[message["state"]]
    return FrozenTrial(
        number=message["number"],
        trial_id=message["id"],
        state=state,
        value=None,
        values=message["values"],
        datetime_start=_SOME_TIME,
        datetime_complete=_SOME_TIME if state.is_finished() else None,
        params=message["params"],
        distributions=decode_space(message["distributions"]),
        user_attrs={},
        system_attrs=message["system_attrs"],
        intermediate_values=dict(message["intermediate"]),
    )


def encode_space(space: Mapping[str, BaseDistribution]) -> dict[str, str]:
    """Distributions by name as a message holds them, in their order."""
    return {name: distribution_to_json(each) for name, each in space.items()}


def decode_space(space: Mapping[str, str]) -> dict[str, BaseDistribution]:
    """Distributions that a message holds."""
    return {name: _distribution(text) for name, text in space.items()}


def encode_error(error: Exception) -> dict[str, str]:
    """An error of a sampler as a message holds it."""
    names = [kind.__name__ for kind in type(error).__mro__]
    kind = next(name for name in names if name in _ERRORS)
    return {"kind": kind, "text": str(error) if kind == names[0] else f"{names[0]}: {error}"}


def decode_error(message: Mapping[str, str]) -> Exception:
    """An error that a message holds."""
    return _ERRORS[message["kind"]](message["text"])


@functools.lru_cache(maxsize=4096)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


def _as_number(value: Any) -> Any:
    """NumPy's numbers, which samplers may draw."""
    return value.item()
