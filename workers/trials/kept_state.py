"""What a loader's objects keep themselves, found by looking through them: generators and counters.

Invariant: nothing is changed that is as it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

import numpy as np
import torch
from torch.utils.data import IterableDataset

from workers.trials.training_state import (
    generator_state,
    is_generator,
    is_stateful,
    put_generator,
)

#: How far is looked: a data set's transform's list's transform's generator.
_DEPTH: Final = 4

#: How many objects are looked at, and how many items of a list.
_MOST_OBJECTS: Final = 500
_MOST_ITEMS: Final = 64

_NO_HOLDERS: Final = (
    type, ModuleType, FunctionType, MethodType, torch.Tensor, torch.nn.Module, np.ndarray, str,
    bytes, int, float, bool, type(None),
)  # fmt: skip


class KeptState:
    """The generators, states and counters among some objects and what hangs on them.

    Args:
        roots: The objects, by a name for people.
        leave_out: Objects that are not looked into.
        has_counters: Whether integer attributes count, such as the epoch of a sampler, and what
            has a `state_dict`; not that of a stream, which is where its rows are.
    """

    def __init__(
        self,
        roots: Mapping[str, Any],
        *,
        leave_out: Sequence[Any] = (),
        has_counters: bool = False,
    ) -> None:
        self._counting: dict[str, Any] = {}
        self._stateful: dict[str, Any] = {}
        self._generators: dict[str, Any] = {}
        for name, value, is_in_stream in _walk(roots, leave_out):
            if is_generator(value):
                self._generators[name] = value
            elif has_counters and is_stateful(value) and not is_in_stream:
                self._stateful[name] = value
            elif has_counters:
                self._counting[name] = value

    @property
    def generators(self) -> list[str]:
        """The names of all generators."""
        return list(self._generators)

    def take(self) -> dict[str, Any]:
        """All of it as it is now, as data."""
        return {
            "generators": {name: generator_state(it) for name, it in self._generators.items()},
            "states": {name: it.state_dict() for name, it in self._stateful.items()},
            "counters": {name: _counters(it) for name, it in self._counting.items()},
        }

    def put(self, saved: Mapping[str, Any]) -> None:
        """All of it as it was; what is not there any more is left out."""
        for name, state in saved["generators"].items():
            if name in self._generators:
                put_generator(self._generators[name], state)
        for name, state in saved["states"].items():
            if name in self._stateful:
                self._stateful[name].load_state_dict(state)
        for name, counters in saved["counters"].items():
            _put_counters(self._counting.get(name), counters)


def _counters(value: Any) -> dict[str, int]:
    return {name: count for name, count in vars(value).items() if type(count) is int}


def _put_counters(value: Any, counters: Mapping[str, int]) -> None:
    known = {} if value is None else _counters(value)
    for name, count in counters.items():
        if name in known and known[name] != count:
            with suppress(AttributeError):  # a property, or frozen: it changed some other way
                setattr(value, name, count)


def _walk(roots: Mapping[str, Any], leave_out: Sequence[Any]) -> Iterator[tuple[str, Any, bool]]:
    """The roots and what hangs on them, each once, the nearest first; and which is a stream's."""
    seen = {id(value) for value in leave_out}
    waiting = deque((name, value, 0, False) for name, value in roots.items())
    while waiting and len(seen) < _MOST_OBJECTS:
        name, value, depth, is_in_stream = waiting.popleft()
        if id(value) in seen or isinstance(value, _NO_HOLDERS):
            continue
        seen.add(id(value))
        is_last = is_generator(value)
        is_in_stream = is_in_stream or isinstance(value, IterableDataset)
        if is_last or hasattr(value, "__dict__"):
            yield name, value, is_in_stream
        if not is_last and depth < _DEPTH:
            waiting.extend(
                (f"{name}.{key}", item, depth + 1, is_in_stream) for key, item in _held_by(value)
            )


def _held_by(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, (list, tuple)):
        return list(enumerate(value[:_MOST_ITEMS]))
    if isinstance(value, dict):
        return list(value.items())[:_MOST_ITEMS]
    return list(vars(value).items()) if hasattr(value, "__dict__") else []
