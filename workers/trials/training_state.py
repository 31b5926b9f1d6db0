"""The state of a user's training: what is saved of it, and how it is put back where it was.

| what is given | saved, and put back |
|---|---|
| whatever has `state_dict` and `load_state_dict` | by these |
| metrics of torchmetrics, also in modules | by what they have counted, too |
| an `accelerate.Accelerator` | all that it has prepared, and where it is in an accumulation |
| generators of Python, NumPy and torch | where they are |
| mappings and lists of all that | in place, part by part |
| tensors and arrays in a mapping or list | in place, if they are as large as they were |
| numbers, text and other data there | by assignment |

Invariant: what was given is what is put back to; nobody has to fetch anything from here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, MutableMapping, MutableSequence
from typing import Any, Final

import numpy as np
import torch

from workers.disk.state_packing import pack
from workers.protocol.errors import ObjectiveError
from workers.protocol.plain import describe_error, type_name
from workers.trials.data_in_place import DataInPlace
from workers.trials.metric_states import metrics_of, put_counts, take_counts
from workers.trials.out_of_memory import ran_out_of_memory

_GENERATORS: Final = (
    torch.Generator,
    random.Random,
    np.random.Generator,
    np.random.RandomState,
)


#: What may hold parts, and take others in their place.
_CONTAINERS: Final = (MutableMapping, MutableSequence)

_WAY_OUT: Final = "each attempt has to give the state that the first one gave, built alike"


class TrainingState:
    """What a user wants saved and put back.

    Args:
        given: As the user gave it.

    Raises:
        ObjectiveError: It could not be put back; the message says why.
        UnsuitableValueError: Something in it cannot be saved; the message names its place.
    """

    def __init__(self, given: Any) -> None:
        self.given = given
        if not (is_stateful(given) or isinstance(given, _CONTAINERS)) or isinstance(given, type):
            raise ObjectiveError(
                f"trial.training({type_name(given)}): give what has a `state_dict`, or a mapping"
                ' of such things by name: trial.training({"model": model, "optimizer": optimizer})'
            )
        for place, part in self._parts():
            if is_accumulating(part) and not self._has_accelerator():
                raise ObjectiveError(
                    f"{place} accumulates gradients, which its accelerator counts; give that:"
                    " trial.training(accelerator)"
                )
        for place, content in _contents_of(self.take(), "state"):
            pack(content, place)

    def take(self) -> Any:
        """The state as it is now, as data; tensors in it are the training's own."""
        return _take(self.given)

    def put(self, saved: Any) -> None:
        """Put a state back.

        Raises:
            ObjectiveError: It is the state of something else.
        """
        modules = [module for _, module in self.modules()]
        tensors = (each for one in modules for each in [*one.parameters(), *one.buffers()])
        _put(self.given, saved, "state", DataInPlace(tensors))

    def holds(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether an optimizer is part of it, as it is or in one of accelerate's."""
        return any(
            optimizer in {part, getattr(part, "optimizer", None)}
            for _, part in self._parts()
            if isinstance(part, torch.optim.Optimizer)
        )

    def modules(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """The modules in it, with their places."""
        return ((at, part) for at, part in self._parts() if isinstance(part, torch.nn.Module))

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors that lie in it as they are, with their places."""
        return _tensors_of(self.given, "state")

    def _parts(self) -> Iterator[tuple[str, Any]]:
        return _parts_of(self.given, "state")

    def _has_accelerator(self) -> bool:
        return any(_is_accelerator(part) for _, part in self._parts())


def is_stateful(value: Any) -> bool:
    """Whether a value says itself what is to be saved of it."""
    return (
        callable(getattr(value, "state_dict", None))
        and callable(getattr(value, "load_state_dict", None))
    ) or _is_accelerator(value)


def is_generator(value: Any) -> bool:
    """Whether a value is a generator of random numbers."""
    return isinstance(value, _GENERATORS)


def generator_state(generator: Any) -> Any:
    """Where a generator is, as data."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state()


def put_generator(generator: Any, state: Any) -> None:
    """Put a generator where it was."""
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def is_accumulating(value: Any) -> bool:
    """Whether a value is an optimizer of accelerate's that leaves steps out."""
    progress = getattr(value, "gradient_state", None)
    return isinstance(value, torch.optim.Optimizer) and getattr(progress, "num_steps", 1) > 1


def _is_accelerator(value: Any) -> bool:
    kind = type(value)
    return kind.__name__ == "Accelerator" and kind.__module__.startswith("accelerate.")


def _prepared(accelerator: Any) -> dict[str, Any]:
    """What an accelerator has prepared, by kind, in its order."""
    scaler = {} if accelerator.scaler is None else {"scaler": accelerator.scaler}
    kinds = {
        "models": accelerator._models,
        "optimizers": accelerator._optimizers,
        "schedulers": accelerator._schedulers,
        "registered": accelerator._custom_objects,
    }
    return {**{name: list(parts) for name, parts in kinds.items()}, **scaler}


def _items_of(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items() if isinstance(value, MutableMapping) else enumerate(value))


def _parts_of(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """All that is no plain data, with its place."""
    if is_stateful(value) or is_generator(value):
        yield place, value
        if _is_accelerator(value):
            yield from _parts_of(_prepared(value), place)
    elif isinstance(value, _CONTAINERS):
        for key, item in _items_of(value):
            yield from _parts_of(item, f"{place}[{key!r}]")


def _tensors_of(value: Any, place: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield place, value
    elif isinstance(value, (*_CONTAINERS, tuple)) and not is_stateful(value):
        for key, item in _items_of(value):
            yield from _tensors_of(item, f"{place}[{key!r}]")


def _kind_of(value: Any) -> str:
    if _is_accelerator(value):
        return "accelerator"
    if is_stateful(value):
        return "measured" if metrics_of(value) else "state"
    if is_generator(value):
        return "generator"
    return "parts" if any(_parts_of(value, "")) else "data"


def _take(value: Any) -> tuple[str, Any]:
    kind = _kind_of(value)
    if kind == "accelerator":
        return kind, {"step": value.step, "prepared": _take(_prepared(value))}
    if kind == "state":
        return kind, value.state_dict()
    if kind == "measured":
        counts = take_counts(metrics_of(value))
        return kind, {"state": value.state_dict(), "counts": counts}
    if kind == "generator":
        return kind, generator_state(value)
    if kind == "parts":
        return kind, [(key, _take(item)) for key, item in _items_of(value)]
    return kind, value


def _contents_of(taken: tuple[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    """What `_take` found, part by part, with the places that it was given at."""
    kind, content = taken
    if kind != "parts":
        yield place, content
        return
    for key, item in content:
        yield from _contents_of(item, f"{place}[{key!r}]")


def _put(value: Any, saved: tuple[str, Any], place: str, data: DataInPlace) -> Any:
    """Put a part back; what is to stand in its place."""
    kind, content = saved
    now = _kind_of(value)
    is_older = (kind, now) == ("state", "measured")  # metrics were left out once
    is_empty = (kind, now) == ("parts", "data") and isinstance(value, _CONTAINERS)
    if now != kind and not (is_older or is_empty):
        raise ObjectiveError(
            f"{place} is {type_name(value)}, and the trial's checkpoint holds another thing there;"
            f" {_WAY_OUT}"
        )
    if kind == "data":
        return data.put(value, content)
    if kind == "generator":
        put_generator(value, content)
    elif kind == "state":
        _load(value, content, place)
    elif kind == "measured":
        _load(value, content["state"], place)
        _put_counts(value, content["counts"], place)
    elif kind == "accelerator":
        value.step = content["step"]
        _put(_prepared(value), content["prepared"], place, data)
    else:
        _put_items(value, content, place, data)
    return value


def _put_items(value: Any, content: list[tuple[Any, Any]], place: str, data: DataInPlace) -> None:
    """Put back the items of a container, by their keys or places; data after what may hold it."""
    known, kept = dict(_items_of(value)), dict(content)
    for key, (kind, _) in content:
        if kind != "data" and key not in known:
            raise ObjectiveError(f"{place}[{key!r}] is in the trial's checkpoint alone; {_WAY_OUT}")
    for key, part in sorted(known.items(), key=lambda item: _kind_of(item[1]) == "data"):
        if key in kept:
            value[key] = _put(part, kept[key], f"{place}[{key!r}]", data)
        elif _kind_of(part) != "data":
            raise ObjectiveError(f"{place}[{key!r}] is not in the trial's checkpoint; {_WAY_OUT}")
    if isinstance(value, MutableMapping):
        value.update({key: saved for key, (_, saved) in content if key not in known})


def _put_counts(value: Any, counts: list[dict[str, Any]], place: str) -> None:
    metrics = metrics_of(value)
    if len(metrics) != len(counts):
        raise ObjectiveError(
            f"{place} has {len(metrics)} metrics, and the trial's checkpoint {len(counts)};"
            f" {_WAY_OUT}"
        )
    put_counts(metrics, counts)


def _load(value: Any, content: Any, place: str) -> None:
    try:
        value.load_state_dict(content)
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        raise ObjectiveError(
            f"{place}: {type_name(value)} does not take what the trial's checkpoint holds for it"
            f" ({describe_error(error, 500)}); {_WAY_OUT}"
        ) from error
    if isinstance(value, torch.optim.Optimizer):
        # it has stepped, though not in this process: torch warns of schedulers that come first
        inner: Any = getattr(value, "optimizer", value)
        inner._opt_called = True
