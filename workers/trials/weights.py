"""What a training keeps with its weights besides their values: gradients, and what is trained.

Invariant: gradients that a step has used up are not saved; all that the next step adds to are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.weak import TensorWeakRef

from workers.trials.data_in_place import address_of
from workers.trials.finite import trained
from workers.trials.training_state import TrainingState


class SteppedOptimizer:
    """An optimizer that has stepped just now."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._weight = next((it for it in _weights_of(optimizer) if it.grad is not None), None)
        gradient = None if self._weight is None else self._weight.grad
        # one stands for all: this is asked for at each step
        self._gradient = None if gradient is None else TensorWeakRef(gradient)
        self._version = None if gradient is None else gradient._version

    def used(self) -> set[int]:
        """The ids of the weights whose gradients were used up; none once others were computed."""
        gradient = None if self._weight is None else self._weight.grad
        if gradient is not None and (
            self._gradient is None
            or self._gradient() is not gradient
            or self._version != gradient._version
        ):
            return set()
        return {id(weight) for weight in _weights_of(self._optimizer)}


class Weights:
    """The weights of a state: those of its modules, and those that lie in it as they are."""

    def __init__(self, state: TrainingState) -> None:
        self._state = state

    def take(self, stepped: Sequence[SteppedOptimizer]) -> dict[str, Any]:
        """What is kept with them, as data.

        Args:
            stepped: In the last step.
        """
        used = {each for optimizer in stepped for each in optimizer.used()}
        named = dict(self._named())
        return {
            "gradients": {
                name: weight.grad
                for name, weight in named.items()
                if weight.grad is not None and id(weight) not in used
            },
            "requires_grad": {name: weight.requires_grad for name, weight in named.items()},
            "training": {name: module.training for name, module in self._layers()},
        }

    def put(self, saved: Mapping[str, Mapping[str, Any]]) -> None:
        """Put back what `take` gave, and drop all other gradients."""
        for name, weight in self._named():
            trains = saved["requires_grad"].get(name, weight.requires_grad)
            if weight.requires_grad != trains:
                weight.requires_grad_(trains)
            gradient = saved["gradients"].get(name)
            weight.grad = None if gradient is None else gradient.to(weight.device)
        for name, layer in self._layers():
            layer.training = saved["training"].get(name, layer.training)

    def trained(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What training changes of the state, by name."""
        for place, module in self._state.modules():
            for name, tensor in trained(module):
                yield f"{place}.{name}", tensor
        for place, tensor in self._state.tensors():
            if tensor.requires_grad and tensor.is_leaf:
                yield place, tensor

    def left_out(self, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
        """The weights that an optimizer trains, and that are saved nowhere."""
        known = {id(weight) for _, weight in self._named()}
        unknown = [weight for weight in _weights_of(optimizer) if id(weight) not in known]
        if not unknown:
            return []
        # what has a state_dict and is no module may hold them
        saved = {0, *(address_of(tensor) for tensor in _tensors_in(self._state.take()))}
        return [weight for weight in unknown if address_of(weight) not in saved]

    def _named(self) -> Iterator[tuple[str, torch.Tensor]]:
        for place, module in self._state.modules():
            for name, weight in module.named_parameters():
                yield f"{place}.{name}", weight
        for place, tensor in self._state.tensors():
            if isinstance(tensor, torch.nn.Parameter) or (tensor.requires_grad and tensor.is_leaf):
                yield place, tensor

    def _layers(self) -> Iterator[tuple[str, torch.nn.Module]]:
        for place, module in self._state.modules():
            for name, layer in module.named_modules():
                yield f"{place}.{name}", layer


def _weights_of(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    return (weight for group in optimizer.param_groups for weight in group["params"])


def _tensors_in(saved: Any) -> Iterator[torch.Tensor]:
    if isinstance(saved, torch.Tensor):
        yield saved
    elif isinstance(saved, Mapping):
        for item in saved.values():
            yield from _tensors_in(item)
    elif isinstance(saved, (list, tuple)):
        for item in saved:
            yield from _tensors_in(item)
