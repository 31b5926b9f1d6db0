"""Reads a checkpoint's state back from the tensors and plain types that `state_packing` made of it.

Invariant: no code runs for what a file says. A class is looked up among the modules that are
loaded, never imported, and its constructor is not called.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import os
import random
import sys
from collections.abc import Callable, Mapping
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import numpy as np

#: The key of a node that stands for something else; a user's own mapping is never taken for one.
KIND: Final = "\0kind"

#: What a `defaultdict` may make; a function of the user's could not be found again.
FACTORIES: Final = {kind.__name__: kind for kind in (int, float, str, bool, list, dict, set, tuple)}


def unpack(tree: Any) -> Any:
    """The state that `pack` was given.

    Raises:
        LookupError: A class is not loaded here, or is none any more.
        ValueError, TypeError: The tree is none that `pack` made.
    """
    if isinstance(tree, list):
        return [unpack(item) for item in tree]
    if type(tree) is tuple:
        return tuple(unpack(item) for item in tree)
    if type(tree) is not dict:
        return tree
    if KIND not in tree:
        return {key: unpack(item) for key, item in tree.items()}
    return _READERS[tree[KIND]](tree)


def find_class(names: Mapping[str, Any]) -> Any:
    """A class among the modules that are loaded.

    Raises:
        LookupError: It is not there.
    """
    found: Any = sys.modules.get(names["module"])
    for part in names["name"].split("."):
        found = getattr(found, part, None)
    if not isinstance(found, type):
        raise LookupError(f"{names['module']}.{names['name']} is not loaded here")  # noqa: TRY004
    return found


def _bytes(tensor: Any) -> bytes:
    return bytes(tensor.to(dtype=_torch().uint8).numpy().tobytes())


def _torch() -> Any:
    import torch

    return torch


def _read_pairs(node: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    return [(unpack(key), unpack(item)) for key, item in node["value"]]


def _read_ordered(node: Mapping[str, Any]) -> Any:
    found: Any = collections.OrderedDict(_read_pairs(node))
    if "metadata" in node:
        found._metadata = unpack(node["metadata"])
    return found


def _read_defaultdict(node: Mapping[str, Any]) -> Any:
    factory = None if node["factory"] is None else FACTORIES[node["factory"]]
    return collections.defaultdict(factory, _read_pairs(node))


def _read_array(node: Mapping[str, Any]) -> Any:
    content = node["value"].numpy().tobytes()
    return np.frombuffer(content, np.dtype(node["dtype"])).reshape(node["shape"]).copy()


def _read_random(node: Mapping[str, Any]) -> random.Random:
    found = random.Random()
    found.setstate(unpack(node["value"]))
    return found


def _read_random_state(node: Mapping[str, Any]) -> np.random.RandomState:
    found = np.random.RandomState()
    found.set_state(unpack(node["value"]))
    return found


def _read_numpy_generator(node: Mapping[str, Any]) -> np.random.Generator:
    bits = getattr(np.random, node["name"])()
    bits.state = unpack(node["value"])
    return np.random.Generator(bits)


def _read_torch_generator(node: Mapping[str, Any]) -> Any:
    torch = _torch()
    device = torch.device(node["device"])
    found = torch.Generator(device if device.type == "cpu" or torch.cuda.is_available() else "cpu")
    found.set_state(node["value"])
    return found


def _read_enum(node: Mapping[str, Any]) -> Any:
    kind = find_class(node)
    if not issubclass(kind, Enum):
        raise LookupError(f"{node['module']}.{node['name']} is no Enum any more")  # noqa: TRY004
    return kind[node["value"]]


def _read_dataclass(node: Mapping[str, Any]) -> Any:
    kind = find_class(node)
    if not dataclasses.is_dataclass(kind):
        raise LookupError(f"{node['module']}.{node['name']} is no dataclass any more")
    found: Any = object.__new__(kind)  # type: ignore[arg-type]  # checked above to be a class
    known = {each.name for each in dataclasses.fields(kind)}
    for name, value in node["value"].items():
        if name in known:
            object.__setattr__(found, name, unpack(value))
    return found


_READERS: Final[dict[str, Callable[[Mapping[str, Any]], Any]]] = {
    "int": lambda node: int(node["value"], 16),
    "text": lambda node: _bytes(node["value"]).decode("utf-16-be", "surrogatepass"),
    "dict": lambda node: dict(_read_pairs(node)),
    "OrderedDict": _read_ordered,
    "defaultdict": _read_defaultdict,
    "Counter": lambda node: collections.Counter(dict(_read_pairs(node))),
    "set": lambda node: set(unpack(node["value"])),
    "frozenset": lambda node: frozenset(unpack(node["value"])),
    "deque": lambda node: collections.deque(unpack(node["value"]), node["maxlen"]),
    "slice": lambda node: slice(*unpack(node["value"])),
    "range": lambda node: range(*unpack(node["value"])),
    "array": _read_array,
    "scalar": lambda node: _read_array(node)[()],
    "random.Random": _read_random,
    "RandomState": _read_random_state,
    "Generator": _read_numpy_generator,
    "torch.Generator": _read_torch_generator,
    "bytes": lambda node: _bytes(node["value"]),
    "bytearray": lambda node: bytearray(_bytes(node["value"])),
    "Enum": _read_enum,
    "dataclass": _read_dataclass,
    "Path": lambda node: Path(os.fsdecode(_bytes(node["value"]))),
    "datetime": lambda node: dt.datetime.fromisoformat(node["value"]),
    "date": lambda node: dt.date.fromisoformat(node["value"]),
    "time": lambda node: dt.time.fromisoformat(node["value"]),
    "timedelta": lambda node: dt.timedelta(*node["value"]),
    "Decimal": lambda node: Decimal(node["value"]),
    "Fraction": lambda node: Fraction(node["value"]),
    "UUID": lambda node: UUID(node["value"]),
}
