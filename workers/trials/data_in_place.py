"""Data of a training's state, put back into the tensors, arrays and containers that stand for it.

An optimizer or a variable of the user's may hold these, too: what is put in their place instead
would be another one.

Invariant: memory is written to once; what a module keeps in it is the module's to put back.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, MutableSequence, Sequence
from operator import is_
from typing import Any

import numpy as np
import torch


class DataInPlace:
    """Puts data back, once.

    Args:
        kept_elsewhere: Tensors whose content is put back by what they belong to.
    """

    def __init__(self, kept_elsewhere: Iterable[torch.Tensor]) -> None:
        self._written = {address_of(each) for each in kept_elsewhere}

    def put(self, value: Any, content: Any) -> Any:
        """Put content where a value is, if that can take it; what is to stand in its place."""
        if isinstance(value, MutableMapping) and isinstance(content, MutableMapping):
            found = {key: self.put(value.get(key), item) for key, item in content.items()}
            value.clear()
            value.update(found)
            return value
        if isinstance(value, MutableSequence) and isinstance(content, MutableSequence):
            items = self._items(value, content)
            value.clear()
            value.extend(items)
            return value
        if isinstance(value, tuple) and isinstance(content, tuple):
            items = self._items(value, content)
            is_as_it_was = len(items) == len(value) and all(map(is_, items, value))
            return value if is_as_it_was else tuple(items)
        if isinstance(value, torch.Tensor) and isinstance(content, torch.Tensor):
            return self._put_tensor(value, content)
        if isinstance(value, np.ndarray) and isinstance(content, np.ndarray):
            return self._put_array(value, content)
        return content

    def _items(self, value: Iterable[Any], content: Sequence[Any]) -> list[Any]:
        before = [*value, *[None] * len(content)]
        return [self.put(before[place], item) for place, item in enumerate(content)]

    def _put_tensor(self, value: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
        there = content.to(value.device)
        if value.shape != content.shape or value.dtype != content.dtype:
            return there
        if not self._may_write(address_of(value)):
            return value if torch.equal(value, there) else there
        try:
            with torch.no_grad():
                value.copy_(there)
        except RuntimeError:  # an expanded tensor, or one of `torch.inference_mode`
            return there
        return value

    def _put_array(self, value: Any, content: Any) -> Any:
        if value.shape != content.shape or value.dtype != content.dtype:
            return content
        if not value.flags.writeable or not self._may_write(value.ctypes.data):
            return value if np.array_equal(value, content) else content
        value[...] = content
        return value

    def _may_write(self, address: int) -> bool:
        """Whether memory was not written to before; two names for one may have come apart."""
        is_new = address not in self._written
        self._written.add(address)
        return is_new or not address


def address_of(tensor: torch.Tensor) -> int:
    """Where a tensor begins; 0 where it lies in no memory of its own."""
    try:
        return tensor.data_ptr()
    except (RuntimeError, ValueError):  # sparse, or of a layer that has seen no batch
        return 0
