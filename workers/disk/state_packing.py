"""What a checkpoint's state may hold, and how it comes back equal from a file that is data only.

| type | comes back as |
|---|---|
| None, booleans, numbers, text, bytes, slices, ranges | itself |
| list, tuple, set, frozenset, deque | itself; a named tuple as a tuple |
| dict, OrderedDict, defaultdict, Counter | itself |
| tensors, parameters, torch's sizes, types, devices | itself, on the CPU, without hooks |
| NumPy arrays and scalars, of anything but objects | itself |
| generators of Python, NumPy and torch, and their states | one that draws the same |
| Path, Decimal, Fraction, UUID, timedelta | itself |
| datetime, date, time | itself; a time zone as its offset |
| Enum, dataclass | itself, if its class is loaded where it is read, by the same name |

All else is refused when it is saved, with its place in the tree: models, optimizers and schedulers
have a `state_dict()` for that.

Invariant: a file holds tensors and Python's plain types only, so that reading it runs no code.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import os
import random
from collections.abc import Callable, Mapping
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

import numpy as np

from workers.disk.state_reading import FACTORIES, KIND, find_class
from workers.protocol.errors import UnsuitableValueError
from workers.protocol.plain import type_name

#: How deep a state may be nested: what writes the file recurses, too.
_MAX_DEPTH: Final = 200

#: Integers up to this go into the file as they are; what reads it knows no longer ones.
_MAX_BITS: Final = 2000


def pack(state: Any, place: str = "state") -> Any:
    """A state as a tree of tensors and plain types.

    Args:
        state: As a user gives it to `save_checkpoint`.
        place: What it is called where something in it is refused.

    Raises:
        UnsuitableValueError: Something in it has no rule; the message names its place.
    """
    return _Packer().pack(state, place)


class _Packer:
    """Walks a state, and knows which containers it is in."""

    def __init__(self) -> None:
        self._open: set[int] = set()

    def pack(self, value: Any, place: str) -> Any:
        """A value at its place in the state."""
        for rule in (_pack_number_or_text, _pack_torch, _pack_numpy, _pack_leaf):
            packed = rule(value, place)
            if packed is not None:
                return packed
        return None if value is None else self._pack_container(value, place)

    def _pack_container(self, value: Any, place: str) -> Any:
        if id(value) in self._open or len(self._open) > _MAX_DEPTH:
            raise UnsuitableValueError(
                f"{place}: it holds itself, or is nested more than {_MAX_DEPTH} deep; flatten it"
            )
        self._open.add(id(value))
        try:
            return self._pack_opened(value, place)
        finally:
            self._open.remove(id(value))

    def _pack_opened(self, value: Any, place: str) -> Any:
        kind = type(value)
        rule = _CONTAINERS.get(kind)
        if rule is not None:
            return rule(self, value, place)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return tuple(self._items(value, place))
        # one that is a list or a mapping besides keeps its content elsewhere
        if dataclasses.is_dataclass(kind) and kind.__new__ is object.__new__:
            return self._pack_dataclass(value, place)
        raise _refusal(value, place)

    def _pack_dict(self, value: Any, place: str) -> Any:
        if all(type(key) is str and _is_clean(key) for key in value) and KIND not in value:
            return {key: self.pack(item, f"{place}[{key!r}]") for key, item in value.items()}
        return _node("dict", self._pairs(value, place))

    def _pack_ends(self, value: Any, place: str) -> Any:
        parts = [value.start, value.stop, value.step]
        return _node(type(value).__name__, [self.pack(part, place) for part in parts])

    def _items(self, values: Any, place: str) -> list[Any]:
        return [self.pack(item, f"{place}[{index}]") for index, item in enumerate(values)]

    def _pairs(self, values: Mapping[Any, Any], place: str) -> list[Any]:
        return [
            [self.pack(key, f"{place}'s key"), self.pack(item, f"{place}[{key!r:.80}]")]
            for key, item in values.items()
        ]

    def _pack_mapping(self, value: Any, place: str) -> Any:
        further: dict[str, Any] = {}
        if isinstance(value, collections.defaultdict):
            factory = value.default_factory
            name = None if factory is None else getattr(factory, "__name__", "")
            if name is not None and FACTORIES.get(name) is not factory:
                raise UnsuitableValueError(
                    f"{place}: a defaultdict of {type_name(factory)}; it may make"
                    f" {', '.join(FACTORIES)}, or give `dict(...)` of it"
                )
            further["factory"] = name
        elif hasattr(value, "_metadata"):  # of a module's state_dict: its version
            further["metadata"] = self.pack(value._metadata, f"{place}._metadata")
        return _node(_MAPPINGS[type(value)], self._pairs(value, place), **further)

    def _pack_generator(self, value: np.random.Generator, place: str) -> Any:
        name = type(value.bit_generator).__name__
        if getattr(np.random, name, None) is not type(value.bit_generator):
            raise _refusal(value.bit_generator, place)
        return _node("Generator", self.pack(value.bit_generator.state, place), name=name)

    def _pack_dataclass(self, value: Any, place: str) -> Any:
        fields = [each.name for each in dataclasses.fields(value) if hasattr(value, each.name)]
        packed = {name: self.pack(getattr(value, name), f"{place}.{name}") for name in fields}
        return _node("dataclass", packed, **_class_of(value, place))


def _pack_number_or_text(value: Any, _place: str) -> Any:
    """Numbers and text as they are, where what reads the file takes them so."""
    kind = type(value)
    if kind in {bool, float, complex}:
        return value
    if kind is int:
        return value if value.bit_length() <= _MAX_BITS else _node("int", hex(value))
    if kind is str:
        return value if _is_clean(value) else _pack_text(value)
    return None


def _pack_torch(value: Any, place: str) -> Any:
    """Tensors and torch's own small types; None for all else."""
    import torch

    kind = type(value)
    if isinstance(value, torch.Tensor):
        if kind not in {torch.Tensor, torch.nn.Parameter, torch.nn.Buffer}:
            raise UnsuitableValueError(
                f"{place}: {type_name(value)}; give a plain tensor: `.as_subclass(torch.Tensor)`"
            )
        _check_memory(value, place)
        with torch.inference_mode(mode=value.is_inference()):  # as it was made
            # what the user hung on it is no data; a new tensor on the same memory has none of it
            bare = value.detach().requires_grad_(value.requires_grad)
            is_parameter = kind is torch.nn.Parameter
            return torch.nn.Parameter(bare, value.requires_grad) if is_parameter else bare
    if kind in {torch.Size, torch.dtype, torch.device}:
        return value
    if kind is torch.Generator:
        return _node("torch.Generator", value.get_state(), device=str(value.device))
    return None


def _check_memory(tensor: Any, place: str) -> None:
    """Return if a tensor's memory holds what the tensor says it does.

    Raises:
        UnsuitableValueError: It was freed under it.
    """
    import torch

    is_strided = tensor.layout is torch.strided and not tensor.is_nested
    if not is_strided or tensor.device.type not in {"cpu", "cuda"} or not tensor.numel():
        return
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = tensor.storage_offset() + sum((size - 1) * stride for size, stride in steps)
    if (last + 1) * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UnsuitableValueError(
            f"{place}: a tensor of {list(tensor.shape)} whose memory was freed"
            " (`untyped_storage().resize_(0)`); gather it first, or leave it out"
        )


def _pack_numpy(value: Any, place: str) -> Any:
    """NumPy's arrays and scalars; None for all else."""
    if not isinstance(value, (np.ndarray, np.generic)):
        return None
    import torch

    array = np.asarray(value)
    if array.dtype.hasobject or type(value) in {np.ma.MaskedArray, np.matrix}:
        raise UnsuitableValueError(
            f"{place}: {type_name(value)} of {array.dtype}; give an array of numbers or text"
        )
    content = np.frombuffer(array.tobytes(), dtype=np.uint8).copy()
    dtype = array.dtype.descr if array.dtype.names else array.dtype.str
    return _node(
        "scalar" if isinstance(value, np.generic) else "array",
        torch.from_numpy(content),
        dtype=[tuple(field) for field in dtype] if isinstance(dtype, list) else dtype,
        shape=array.shape,
    )


def _pack_leaf(value: Any, place: str) -> Any:
    """What text or a few numbers say all of; None for all else."""
    kind = type(value)
    if isinstance(value, Enum):
        return _node("Enum", value.name, **_class_of(value, place))
    if isinstance(value, PurePath):
        return _node("Path", _ints(os.fsencode(value)))  # a name of a file need not be text
    write = _LEAVES.get(kind)
    return None if write is None else _node(kind.__name__, write(value))


def _pack_text(value: str) -> Any:
    """Text with lone surrogates, which UTF-8 does not hold."""
    return _node("text", _ints(value.encode("utf-16-be", "surrogatepass")))


def _node(kind: str, value: Any, **further: Any) -> dict[str, Any]:
    return {KIND: kind, "value": value, **further}


def _ints(content: bytes | bytearray) -> Any:
    """Bytes as a tensor: as `bytes`, they would take twice the room and a hundred times as long."""
    import torch

    if not content:
        return torch.empty(0, device="cpu")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _is_clean(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _class_of(value: Any, place: str) -> dict[str, str]:
    kind = type(value)
    names = {"module": kind.__module__, "name": kind.__qualname__}
    try:
        is_found = find_class(names) is kind
    except LookupError:
        is_found = False
    if not is_found:
        raise UnsuitableValueError(
            f"{place}: {type_name(value)} cannot be found again by its name; define the class at"
            " the top of its module"
        )
    return names


def _refusal(value: Any, place: str) -> UnsuitableValueError:
    hint = "give its `state_dict()`" if hasattr(value, "state_dict") else "leave it out"
    return UnsuitableValueError(f"{place}: {type_name(value)} is no data; {hint}")


_MAPPINGS: Final[dict[type, str]] = {
    collections.OrderedDict: "OrderedDict",
    collections.defaultdict: "defaultdict",
    collections.Counter: "Counter",
}

_CONTAINERS: Final[dict[type, Callable[[_Packer, Any, str], Any]]] = {
    list: _Packer._items,
    tuple: lambda packer, value, place: tuple(packer._items(value, place)),
    dict: _Packer._pack_dict,
    **dict.fromkeys(_MAPPINGS, _Packer._pack_mapping),
    set: lambda packer, value, place: _node("set", packer._items(value, place)),
    frozenset: lambda packer, value, place: _node("frozenset", packer._items(value, place)),
    collections.deque: lambda packer, value, place: _node(
        "deque", packer._items(value, place), maxlen=value.maxlen
    ),
    slice: _Packer._pack_ends,
    range: _Packer._pack_ends,
    random.Random: lambda packer, value, place: _node(
        "random.Random", packer.pack(value.getstate(), place)
    ),
    np.random.RandomState: lambda packer, value, place: _node(
        "RandomState", packer.pack(value.get_state(), place)
    ),
    np.random.Generator: _Packer._pack_generator,
}

_LEAVES: Final[dict[type, Callable[[Any], Any]]] = {
    bytes: _ints,
    bytearray: _ints,
    dt.datetime: dt.datetime.isoformat,
    dt.date: dt.date.isoformat,
    dt.time: dt.time.isoformat,
    dt.timedelta: lambda value: [value.days, value.seconds, value.microseconds],
    Decimal: str,
    Fraction: str,
    UUID: str,
}
